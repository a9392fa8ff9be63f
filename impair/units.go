package impair

// Quantities as people write them and tc(8) has them, and as they are printed: each has one form that is read back as the
// same value.

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

var errBare = errors.New("a number without its unit")

// number splits "1.5mbit" into 1.5 and "mbit".
func number(s string) (n float64, unit string, err error) {
	s = strings.TrimSpace(s)
	i := strings.IndexFunc(s, func(r rune) bool { return r != '.' && r != '-' && r != '+' && (r < '0' || r > '9') })
	if i < 0 {
		i = len(s)
	}
	n, err = strconv.ParseFloat(s[:i], 64)
	if err != nil || math.IsInf(n, 0) {
		return 0, "", errors.New("no number")
	}
	return n, strings.TrimSpace(s[i:]), nil
}

var bitUnits = map[string]float64{
	"bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12, "kibit": 1 << 10, "mibit": 1 << 20, "gibit": 1 << 30,
}

// parseRate reads bits a second: 10mbit, 10Mbit/s, 1.25MB/s.
func parseRate(s string) (int64, error) {
	n, unit, err := number(s)
	if err != nil {
		return 0, errors.New("want a rate as 10mbit")
	}
	bytes := strings.HasSuffix(unit, "B/s") // the one place where b and B differ
	low := strings.ToLower(unit)
	if strings.HasSuffix(low, "bps") {
		return 0, fmt.Errorf("%s is bytes a second to tc and bits to most people: want %sbit or %sB/s", unit, s[:len(s)-3], s[:len(s)-3])
	}
	var f float64
	if bytes {
		f = 8 * byteUnit(strings.TrimSuffix(unit, "/s"))
	} else if low == "" {
		f = 1 // as tc(8) has it
	} else {
		f = bitUnits[strings.TrimSuffix(low, "/s")]
	}
	if f == 0 {
		return 0, fmt.Errorf("unit %q: want bit, kbit, mbit, gbit, or kB/s, MB/s", unit)
	}
	return int64(math.Round(min(max(n*f, -1), 1e18))), nil
}

func printRate(n int64) string {
	for _, u := range []struct {
		f    int64
		name string
	}{{1e9, "gbit"}, {1e6, "mbit"}, {1e3, "kbit"}} {
		if n >= u.f && n%(u.f/1000) == 0 {
			return trim(float64(n)/float64(u.f)) + u.name
		}
	}
	return strconv.FormatInt(n, 10) + "bit"
}

// trim prints at most six decimals, and no zeros behind them.
func trim(f float64) string {
	s := strconv.FormatFloat(f, 'f', 7, 64)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}

func byteUnit(u string) float64 {
	switch strings.ToLower(u) {
	case "", "b":
		return 1
	case "k", "kb":
		return 1e3
	case "m", "mb":
		return 1e6
	case "g", "gb":
		return 1e9
	case "kib":
		return 1 << 10
	case "mib":
		return 1 << 20
	case "gib":
		return 1 << 30
	}
	return 0
}

// parseSize reads bytes: 100kB, 1MiB, 1500.
func parseSize(s string) (int64, error) {
	n, unit, err := number(s)
	if err != nil || byteUnit(unit) == 0 || strings.HasSuffix(strings.ToLower(unit), "bit") {
		return 0, errors.New("want a size as 100kB, 64KiB or 1500")
	}
	return int64(math.Round(min(max(n*byteUnit(unit), -1), 1e18))), nil
}

func printSize(n int64) string {
	for _, u := range []struct {
		f    int64
		name string
	}{{1 << 30, "GiB"}, {1e9, "GB"}, {1 << 20, "MiB"}, {1e6, "MB"}, {1 << 10, "KiB"}, {1e3, "kB"}} {
		if n >= u.f && n%u.f == 0 {
			return strconv.FormatInt(n/u.f, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

var timeUnits = map[string]time.Duration{
	"ns": 1, "us": time.Microsecond, "µs": time.Microsecond, "usec": time.Microsecond, "usecs": time.Microsecond,
	"ms": time.Millisecond, "msec": time.Millisecond, "msecs": time.Millisecond,
	"s": time.Second, "sec": time.Second, "secs": time.Second, "m": time.Minute, "min": time.Minute, "h": time.Hour,
}

// parseTime reads a time: 50ms, 1.5s, 1m30s. tc(8) takes a number alone for microseconds and ping prints milliseconds,
// so one without a unit is refused, but 0.
func parseTime(s string) (time.Duration, error) {
	rest, total, neg := strings.TrimSpace(s), 0.0, false
	if strings.HasPrefix(rest, "-") {
		neg, rest = true, rest[1:]
	}
	for first := true; first || rest != ""; first = false {
		n, _, err := number(rest)
		if err != nil || strings.HasPrefix(rest, "-") {
			return 0, errors.New("want a time as 50ms, 1.5s or 200us")
		}
		i := strings.IndexFunc(rest, func(r rune) bool { return r != '.' && r != '+' && (r < '0' || r > '9') })
		if i < 0 {
			if n == 0 && first {
				return 0, nil
			}
			return 0, fmt.Errorf("%w: want %sms, or us or s", errBare, rest)
		}
		rest = strings.TrimSpace(rest[i:])
		j := strings.IndexAny(rest, "0123456789.")
		if j < 0 {
			j = len(rest)
		}
		u, ok := timeUnits[strings.ToLower(strings.TrimSpace(rest[:j]))]
		if !ok {
			return 0, fmt.Errorf("unit %q: want us, ms, s", rest[:j])
		}
		total += n * float64(u)
		rest = rest[j:]
	}
	if neg {
		total = -total
	}
	return time.Duration(math.Round(min(max(total, -1e18), 1e18))), nil
}

func printTime(d time.Duration) string {
	switch {
	case d == 0:
		return "0s"
	case d%time.Second == 0 && d >= time.Minute:
		s := d.String()
		if strings.HasSuffix(s, "m0s") {
			s = strings.TrimSuffix(s, "0s")
		}
		if strings.HasSuffix(s, "h0m") {
			s = strings.TrimSuffix(s, "0m")
		}
		return s
	}
	return strings.ReplaceAll(d.String(), "µ", "u")
}

// parseShare reads a probability: 1%, or 0.01. A whole number without % is refused: 1 may be meant as either.
func parseShare(s string) (float64, error) {
	n, unit, err := number(s)
	switch {
	case err != nil:
		return 0, errors.New("want a share as 1% or 0.01")
	case unit == "%":
		n /= 100
		if n < 0 || n > 1 {
			return 0, errors.New("want 0% to 100%")
		}
	case unit != "":
		return 0, fmt.Errorf("unit %q: want a share as 1%% or 0.01", unit)
	case n == 1:
		return 0, errors.New("want 1% or 100%: 1 alone could be either")
	case n < 0 || n > 1:
		return 0, fmt.Errorf("want 0%% to 100%%, or 0.0 to 0.99 without the %%")
	}
	return math.Round(n*1e9) / 1e9, nil
}

func printShare(f float64) string { return trim(math.Round(f*1e9)/1e7) + "%" }
