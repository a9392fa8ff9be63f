package vfkit

import (
	"errors"
	"net"
	"os"

	"github.com/vmnetd/vmnetd/backend/link"
)

var errNoDescriptors = errors.New("vfkit: Windows hands no sockets over")

// AcceptDescriptor is for systems that hand over descriptors.
func AcceptDescriptor(c net.Conn, _ Options) (link.Link, error) {
	c.Close()
	return nil, errNoDescriptors
}

// Connected is for systems that hand over descriptors.
func Connected(*os.File) (net.Conn, error) { return nil, errNoDescriptors }
