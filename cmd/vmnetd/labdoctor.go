package main

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
)

// examineLab looks for what labs' nodes want, beside namespaces.
func examineLab() []finding {
	if runtime.GOOS == "windows" {
		return []finding{{Name: "labs", Is: "not on Windows", Lacks: "'lab up' does not work; 'lab check' and 'lab graph' do"}}
	}
	list := []finding{examineQEMU()}
	list = append(list, examineAcceleration()...)
	for _, p := range []struct{ name, lacks, do string }{
		{"qemu-img", "labs' disks that are neither raw nor qcow2 get no overlay", "on Debian: apt install qemu-utils"},
		{"ssh", "'lab ssh' does not work", "on Debian: apt install openssh-client"},
	} {
		list = append(list, examineProgram(p.name, p.lacks, p.do))
	}
	if runtime.GOOS == "linux" {
		list = append(list, examineProgram("linux.uml", "labs' nodes of kind uml do not work; those of kind qemu do", "on Debian: apt install user-mode-linux"))
	}
	return list
}

func examineProgram(name, lacks, do string) finding {
	path, err := exec.LookPath(name)
	if err != nil {
		return finding{Name: name, Is: "not installed", Lacks: lacks, Do: do}
	}
	return finding{Name: name, OK: true, Is: path}
}

// emulator is QEMU's program for this machine's processor.
func emulator() string {
	arch := runtime.GOARCH
	if other := map[string]string{"amd64": "x86_64", "arm64": "aarch64", "386": "i386", "ppc64le": "ppc64", "loong64": "loongarch64"}[arch]; other != "" {
		arch = other
	}
	return "qemu-system-" + arch
}

func examineQEMU() finding {
	f := examineProgram(emulator(), "labs' nodes of kind qemu do not work", "on Debian: apt install qemu-system-x86, or -arm, -misc, …")
	f.Name = "QEMU"
	if !f.OK {
		f.Is = emulator() + " is not installed"
		return f
	}
	if v, told := qemuVersion(context.Background(), f.Is); told {
		f.Is = fmt.Sprintf("%d.%d, %s", v/100, v%100, f.Is)
	}
	return f
}
