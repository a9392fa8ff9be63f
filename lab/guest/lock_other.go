//go:build !unix

package guest

import (
	"context"
	"os"
)

// Lock locks nothing: no guest is made on these systems, the package only has to compile there.
func Lock(context.Context, string) (unlock func(), err error) { return func() {}, nil }

func private(dir string) error { return os.MkdirAll(dir, 0o700) }
