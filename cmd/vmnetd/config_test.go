package main

import (
	"os"
	"reflect"
	"slices"
	"testing"

	"github.com/spf13/pflag"
	"github.com/vmnetd/vmnetd/config"
)

// TestConfigKeys: what a flag says a file can say, and the other way round.
func TestConfigKeys(t *testing.T) {
	var f serveFlags
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.add(fs)
	known := map[string]bool{
		"network": true, "config": true, // the file's own form
		"ready-fd": true, "pid-file": true, // whoever starts a daemon says them, each time anew
		"capture":  true, // begins anew with each start
		"qos":      true, // for the programs of one test
		"restrict": true, // policy: {preset: restrict}
	}
	var look func(reflect.Type)
	look = func(typ reflect.Type) {
		if typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct {
			return
		}
		for i := range typ.NumField() {
			field := typ.Field(i)
			if !field.IsExported() {
				continue
			}
			flag := field.Tag.Get("flag")
			if flag == "" {
				look(field.Type)
				continue
			}
			if known[flag] = true; fs.Lookup(flag) == nil {
				t.Errorf("key %s: no flag --%s", field.Tag.Get("yaml"), flag)
			}
		}
	}
	look(reflect.TypeFor[config.File]())
	fs.VisitAll(func(flag *pflag.Flag) {
		if !known[flag.Name] {
			t.Errorf("--%s: no key in a file", flag.Name)
		}
	})
}

// TestConfigPlan: a file and the flags that say the same make the same.
func TestConfigPlan(t *testing.T) {
	plan := func(args ...string) *config.File {
		t.Helper()
		var f serveFlags
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		f.add(fs)
		if err := fs.Parse(args); err != nil {
			t.Fatal(err)
		}
		if err := f.readFile(fs); err != nil {
			t.Fatal(err)
		}
		file, err := f.inForce(fs)
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	flags := []string{"--name", "a", "--net", "10.9.0.0/24", "--mtu", "9000", "-p", "2222:22", "-p", "unix:/tmp/a,b-:80", "--static", "52:54:00:12:34:56=10.9.0.20", "--limit", "flows=100,up=12345678",
		"--limit", "52:54:00:12:34:57,down=10mbit", "--resolver", "192.0.2.1", "--search", "x.example", "--open-link-local", "169.254.169.254/32", "--route", "10.0.0.0/8", "--policy", "sandbox",
		"--allow", "tcp x.example:443", "--policy-audit", "--isolate", "--strict-leases", "--no-host-loopback", "--memory", "256MiB", "--pprof", "--log-level", "warn", "--log-format", "json", "--sandbox", "off",
		"--sandbox-folder", "/tmp/x", "--core-dumps", "--user", "nobody", "--control", "/tmp/c.sock", "--qemu", "unix:/tmp/a,,b.sock,network=lab", "--vfkit", "unix:/tmp/v.sock",
		"--network", "lab,policy=open,isolate=false,forward=unix:/tmp/c,,d-:81", "--network", "same"}
	want := plan(flags...)
	path := t.TempDir() + "/f"
	if err := os.WriteFile(path, []byte(want.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := plan("--config", path).String(); got != want.String() {
		t.Errorf("flags made\n%s\nand that\n%s", want, got)
	}
	if want.Networks[2].Isolate == nil || !*want.Networks[2].Isolate || *want.Networks[1].Isolate {
		t.Error("the third network has what the first has, and the second its own")
	}

	// Flags override: each what it names; a policy is one thing; a network the one of its name.
	got := plan("--config", path, "--mtu", "auto", "--policy", "open", "-p", "80:80", "--qemu", "unix:/tmp/q.sock", "--network", "lab,isolate", "--network", "new")
	n := got.Networks[0]
	if n.MTU != "auto" || n.Net != "10.9.0.0/24" || n.Policy.Preset != "open" || n.Policy.Rules != "" || len(n.Forward) != 1 {
		t.Errorf("%+v", n)
	}
	if !slices.Equal(got.Doors.QEMU, []string{"unix:/tmp/q.sock"}) || len(got.Doors.VFKit) != 1 {
		t.Errorf("%+v", got.Doors)
	}
	var names []string
	for _, n := range got.Networks {
		names = append(names, n.Name)
	}
	if !slices.Equal(names, []string{"a", "same", "lab", "new"}) || !*got.Networks[2].Isolate || len(got.Networks[2].Forward) != 0 {
		t.Errorf("%v %+v", names, got.Networks[2])
	}
}
