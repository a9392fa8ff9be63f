package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// yamlOf writes a JSON text as YAML: the same keys in the same order, the same values. A string is in quotes unless no
// reader of YAML, 1.1 or 1.2, can take it for anything else; what a terminal would obey is escaped.
func yamlOf(text []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber() // a counter of 64 bits must come out as it is
	y := yamlWriter{in: d}
	if err := y.value(0, false); err != nil {
		return nil, err
	}
	return y.out.Bytes(), nil
}

type yamlWriter struct {
	in  *json.Decoder
	out bytes.Buffer
}

// value writes the next value at an indentation. inItem says that it stands right behind a list's dash.
func (y *yamlWriter) value(indent int, inItem bool) error {
	t, err := y.in.Token()
	if err != nil {
		return noEOF(err)
	}
	switch v := t.(type) {
	case json.Delim:
		return y.all(v, indent, inItem)
	case string:
		fmt.Fprintln(&y.out, yamlString(v))
	case nil:
		y.out.WriteString("null\n")
	default: // a number or a bool, as JSON has them
		fmt.Fprintln(&y.out, v)
	}
	return nil
}

// all writes what an object or an array has, a line each.
func (y *yamlWriter) all(open json.Delim, indent int, inItem bool) error {
	if !y.in.More() {
		y.out.WriteString(map[json.Delim]string{'{': "{}\n", '[': "[]\n"}[open])
		_, err := y.in.Token()
		return noEOF(err)
	}
	if !inItem && y.out.Len() > 0 { // behind a key
		b := y.out.Bytes()
		y.out.Truncate(len(bytes.TrimRight(b, " ")))
		y.out.WriteByte('\n')
	}
	for first := true; y.in.More(); first = false {
		if !first || !inItem {
			y.out.WriteString(strings.Repeat("  ", indent))
		}
		item := open == '['
		if item {
			y.out.WriteString("- ")
		} else {
			key, err := y.in.Token()
			if err != nil {
				return noEOF(err)
			}
			y.out.WriteString(yamlString(key.(string)) + ": ")
		}
		if err := y.value(indent+1, item); err != nil {
			return err
		}
	}
	_, err := y.in.Token()
	return noEOF(err)
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

var (
	plainYAML = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9_./+-]*( [A-Za-z0-9_./+-]+)*$`)
	// What YAML 1.1 takes for a bool or nothing (yaml.org/type/bool, null).
	wordYAML = regexp.MustCompile(`^(?i:y|n|yes|no|on|off|true|false|null)$`)
)

func yamlString(s string) string {
	if plainYAML.MatchString(s) && !wordYAML.MatchString(s) {
		return s
	}
	return strconv.Quote(s) // Go's escapes are among YAML's (1.2.2, 5.7)
}
