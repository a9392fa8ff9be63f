package main

import "golang.org/x/sys/unix"

const termGet = unix.TCGETS
