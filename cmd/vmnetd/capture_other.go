//go:build !unix

package main

import "os"

func readerGone(*os.File, func()) {} // the next write fails
