package lab

import (
	"testing"

	"go.uber.org/goleak"
)

// Whatever a lab starts ends with it.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
