package lab

import (
	"log/slog"
	"testing"
)

// testLog logs with the test.
func testLog(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }
