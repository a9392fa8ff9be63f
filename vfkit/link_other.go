//go:build !linux

package vfkit

import "github.com/vmnetd/vmnetd/backend/link"

func newLink(w *wire) link.Link { return w }
