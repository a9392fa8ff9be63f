//go:build !unix

package traffic

// The end-to-end tests run on Unix; elsewhere this package only has to compile.
func errnoEnd(error) string { return "" }
