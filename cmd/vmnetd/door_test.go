package main

import (
	"errors"
	"maps"
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	for _, c := range []struct {
		in, kind, rest string
		options        map[string]string
	}{
		{"unix:/run/a.sock", "unix", "/run/a.sock", nil},
		{"unix:/run/a,,b:c.sock", "unix", "/run/a,b:c.sock", nil},
		{"unix:/run/a,,,,b", "unix", "/run/a,,b", nil},
		{"unix:/run/a,,,x=1", "unix", "/run/a,", map[string]string{"x": "1"}},
		{"tcp:[::1]:7000,x=1,y=a,,b,z=", "tcp", "[::1]:7000", map[string]string{"x": "1", "y": "a,b", "z": ""}},
		{"dial:unix:/run/q", "dial:unix", "/run/q", nil},
		{"dial:vsock:2:1024", "dial:vsock", "2:1024", nil},
		{"dial", "dial:", "", nil},
		{"stdio", "stdio", "", nil},
		{"fd:3", "fd", "3", nil},
		{"", "", "", nil},
	} {
		a, err := parseAddress(c.in)
		if err != nil || a.kind != c.kind || a.rest != c.rest || !maps.Equal(a.options, c.options) {
			t.Errorf("%q is %+v, %v", c.in, a, err)
		}
	}
	for _, in := range []string{"unix:/run/a,b", "unix:/a,", "unix:/a,=1", "unix:/a,x=1,x=2"} {
		if a, err := parseAddress(in); err == nil {
			t.Errorf("%q is %+v", in, a)
		}
	}
}

// What makes no sense is refused with what would.
func TestOpenDoorRefuses(t *testing.T) {
	for _, f := range framings {
		for _, addr := range []string{"", "nowhere", "/run/q.sock", "pigeon:7", "unix", "dial:", "dial:fd:3", "dial:dial:unix:/x", "unix:/x,colour=red", "unix:/x,y"} {
			var usage usageError
			d, err := openDoor(f, addr, nil)
			if !errors.As(err, &usage) {
				t.Errorf("--%s %q: %v, %v", f.name, addr, d, err)
			} else if !strings.Contains(err.Error(), "--"+f.name) {
				t.Errorf("--%s %q: the error does not name it: %v", f.name, addr, err)
			}
		}
	}
}
