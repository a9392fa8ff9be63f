//go:build linux

package main

import (
	"context"
	"errors"
	"io"
)

func measureQEMU(context.Context, *options, string, *report, io.Writer) error {
	return errors.New("--qemu: not built yet")
}
