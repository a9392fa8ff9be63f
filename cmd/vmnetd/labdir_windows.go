package main

import (
	"context"
	"errors"
	"os"
)

var errLabWindows = errors.New("labs do not run on Windows: 'lab check' and 'lab graph' do")

func tryLock(string) (func(), error)                 { return nil, errLabWindows }
func holdLock(string) (*os.File, error)              { return nil, errLabWindows }
func lockHolder(string) (int, error)                 { return 0, os.ErrNotExist }
func endMarked(context.Context, string) (int, error) { return 0, nil }

func startTicks(int) uint64 { return 0 }

func startLab(context.Context, labDir, labStart) (labStarted, error) {
	return labStarted{}, errLabWindows
}

type boundedLog struct{ *os.File }

func openBoundedLog(string, int64) (*boundedLog, error) { return nil, errLabWindows }

func adopt(context.Context) <-chan struct{} {
	over := make(chan struct{})
	close(over)
	return over
}

func execSSH([]string) error { return errLabWindows }

func tailOf(string) string { return "" }
