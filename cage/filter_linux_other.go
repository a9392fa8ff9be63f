//go:build linux && !amd64 && !arm64

package cage

import (
	"fmt"
	"runtime"
)

func (p Plan) filter() error { return canFilter() }

func canFilter() error {
	return fmt.Errorf("no filter for %s: its system calls are not known here", runtime.GOARCH)
}
