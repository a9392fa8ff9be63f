//go:build !linux

package main

import "github.com/vmnetd/vmnetd/cage"

func (d *daemon) cageUser(string, []string) (*cage.User, error) {
	if d.cage.user != "" {
		return nil, usagef("--user: Linux only")
	}
	return nil, nil
}

// sweeper is Linux only, as is another user.
type sweeper struct{}

func (*sweeper) doors() {}
func (*sweeper) all()   {}

func (d *daemon) sweeper() (*sweeper, error) { return nil, nil }
