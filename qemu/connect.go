package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

// gvproxy's guests, gvforwarder and podman's and CRC's machines, begin with an HTTP request, POST /connect, and send
// frames behind it without waiting for an answer. There is none: they take the first bytes for a frame's length.
//
// The request must be as bare as theirs. A web page can make a browser send a POST to this machine, with frames for a
// body, so a body is refused, and whatever a browser says of where its request came from.

// headMost is how long the request may be. Theirs have a hundred bytes or two.
const headMost = 8 << 10

// isMethod says whether b may begin an HTTP method (RFC 9110 §9.3).
func isMethod(b byte) bool { return 'A' <= b && b <= 'Z' }

// methods are those of RFC 9110 §9.3, as they begin a request.
var methods = []string{"POST /", "GET / ", "HEAD /", "PUT / ", "DELETE", "OPTION", "TRACE ", "CONNEC"}

// requestError is why a request is refused, with the status that tells it.
type requestError struct {
	status string
	reason string
}

func (e *requestError) Error() string { return "qemu: HTTP request refused: " + e.reason }

// connect reads the request to its last byte and no further, and answers a wrong one.
func connect(c net.Conn) error {
	err := readConnect(c)
	var e *requestError
	if errors.As(err, &e) {
		fmt.Fprintf(c, "HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n", e.status, len(e.reason)+1, e.reason)
	}
	return err
}

func readConnect(r io.Reader) error {
	head := make([]byte, 0, 512)
	line := func() (string, error) {
		start := len(head)
		for {
			if len(head) == headMost {
				return "", &requestError{"431 Request Header Fields Too Large", fmt.Sprintf("a request head of more than %d bytes", headMost)}
			}
			head = append(head, 0)
			// A byte at a time: what follows the request is frames.
			if _, err := io.ReadFull(r, head[len(head)-1:]); err != nil {
				if err == io.EOF && start > 0 {
					err = io.ErrUnexpectedEOF
				}
				return "", fmt.Errorf("qemu: HTTP request: %w", err)
			}
			if head[len(head)-1] != '\n' {
				continue
			}
			l, ok := bytes.CutSuffix(head[start:], []byte("\r\n"))
			if !ok || bytes.ContainsFunc(l, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) {
				return "", &requestError{"400 Bad Request", "control characters in the request's head"}
			}
			return string(l), nil
		}
	}
	request, err := line()
	if err != nil {
		return err
	}
	var wrong *requestError
	for {
		field, err := line()
		if err != nil {
			return err
		}
		if field == "" {
			break
		}
		if e := refusedField(field); e != nil && wrong == nil {
			wrong = e
		}
	}
	words := strings.Split(request, " ")
	path, _, _ := strings.Cut(words[min(1, len(words)-1)], "?")
	switch {
	case len(words) != 3 || words[2] != "HTTP/1.1" && words[2] != "HTTP/1.0":
		return &requestError{"400 Bad Request", fmt.Sprintf("%.80q is no request line of HTTP/1.1", request)}
	case path != "/connect":
		return &requestError{"404 Not Found", "guests plug in here, with POST /connect; the API is at the control socket"}
	case words[0] != "POST":
		return &requestError{"405 Method Not Allowed\r\nAllow: POST", "guests plug in here with POST /connect"}
	case wrong != nil:
		return wrong
	}
	return nil
}

// refusedField says what is wrong with a header field of the request, nil for nothing.
func refusedField(field string) *requestError {
	name, value, ok := strings.Cut(field, ":")
	name, value = strings.ToLower(name), strings.Trim(value, " \t")
	switch {
	case !ok || name == "" || strings.ContainsAny(name, " \t"): // as a continued line is (RFC 9112 §5.2)
		return &requestError{"400 Bad Request", fmt.Sprintf("%.80q is no header field", field)}
	case name == "content-length" && value == "0":
		return nil
	case name == "content-length", name == "transfer-encoding", name == "expect":
		return &requestError{"400 Bad Request", "a request with a body"}
	case name == "origin", name == "referer", name == "cookie", strings.HasPrefix(name, "sec-"):
		return &requestError{"403 Forbidden", "a request of a browser's"}
	}
	return nil
}
