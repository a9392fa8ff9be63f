package guest

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Keep stores body in dir under prefix and its own hash, and drops the oldest of that prefix so that most stay. A file
// is there whole or not at all.
func Keep(dir, prefix string, body []byte, most int) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	sum := sha256.Sum256(body)
	path := filepath.Join(dir, prefix+hex.EncodeToString(sum[:8]))
	if fi, err := os.Stat(path); err != nil || fi.Size() != int64(len(body)) {
		f, err := os.CreateTemp(dir, ".new-")
		if err != nil {
			return "", err
		}
		_, err = f.Write(body)
		if err == nil {
			err = f.Chmod(0o644)
		}
		if closed := f.Close(); err == nil {
			err = closed
		}
		if err == nil {
			err = os.Rename(f.Name(), path)
		}
		if err != nil {
			os.Remove(f.Name())
			return "", err
		}
	}
	now := time.Now()
	_ = os.Chtimes(path, now, now) // only for the order below
	all, err := glob(dir, prefix+"*")
	if err != nil {
		return "", err
	}
	slices.SortFunc(all, func(a, b string) int { return modified(b).Compare(modified(a)) })
	for _, old := range all[min(len(all), most):] {
		_ = os.Remove(old) // only space is lost
	}
	return path, nil
}

// modified is a file's time, the zero one if it has gone.
func modified(path string) time.Time {
	fi, err := os.Stat(path)
	if err != nil {
		return time.Time{}
	}
	return fi.ModTime()
}
