package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// fakeVfkit is a vfkit or krunkit for scripts: it looks for the gateway on each of its wires.
func fakeVfkit(args []string) int {
	fmt.Println("args", strings.Join(args, " "))
	code := 4
	for _, a := range args {
		_, n, ok := strings.Cut(a, "fd=")
		if !ok {
			continue
		}
		n, _, _ = strings.Cut(n, ",")
		fd, err := strconv.Atoi(n)
		if err != nil {
			fmt.Println("wire", err)
			return 3
		}
		_, _, c, err := inheritedMessages(fd)
		if err != nil {
			fmt.Println("wire", err)
			return 3
		}
		defer c.Close()
		c.Write([]byte("VFKT"))
		mac := []byte{0x52, 0x54, 0, 0xaa, 0xbb, 0xcc}
		c.Write(slices.Concat([]byte{255, 255, 255, 255, 255, 255}, mac, []byte{8, 6},
			[]byte{0, 1, 8, 0, 6, 4, 0, 1}, mac, []byte{10, 0, 2, 99}, make([]byte, 6), []byte{10, 0, 2, 2}))
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		for f := make([]byte, 2000); ; {
			k, err := c.Read(f)
			if err != nil {
				fmt.Println("wire", err)
				return 3
			}
			if k >= 42 && f[12] == 8 && f[13] == 6 && f[21] == 2 && bytes.Equal(f[28:32], []byte{10, 0, 2, 2}) {
				fmt.Println("gateway", net.HardwareAddr(f[22:28]))
				code = 0
				break
			}
		}
	}
	if len(args) > 0 && strings.HasPrefix(args[0], "exit") {
		code, _ = strconv.Atoi(args[0][4:])
	}
	os.Stdout.Sync()
	return code
}
