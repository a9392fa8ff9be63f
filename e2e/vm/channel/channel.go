// Package channel is the wire between a test on the host and a guest: commands go in, their
// output and exit status come out, many at a time, over one byte stream (a virtio-serial port).
// It does not touch the guest's network, so a test can look at a guest whose network is broken.
//
// The host holds a Client, the guest runs Serve:
//
//	c := channel.NewClient(conn)
//	if err := c.Ready(ctx); err != nil { … }
//	p, err := c.Start("ping -c 1 10.0.2.2")
//	out, _ := io.ReadAll(p.Stdout)
//	exit, err := p.Wait(ctx)
//
// Messages are JSON objects, one a line, bytes in base64. The host sends
//
//	{"id":1,"run":"ls /"}        start a shell command under the number 1
//	{"id":1,"in":"aGk="}         bytes for its standard input
//	{"id":1,"eof":true}          the end of its standard input
//	{"id":1,"signal":15}         a signal for its process group
//	{"hello":true}               are you there?
//
// and the guest
//
//	{"hello":true}
//	{"id":1,"out":"…"} {"id":1,"err":"…"}
//	{"id":1,"exit":{"code":0}}   the last word on number 1
//
// It trusts both ends: a test's host and a test's guest. It is no remote shell for anything else.
package channel

// request is a message from the host.
type request struct {
	ID     uint64 `json:"id,omitempty"`
	Run    string `json:"run,omitempty"`
	In     []byte `json:"in,omitempty"`
	EOF    bool   `json:"eof,omitempty"`
	Signal int    `json:"signal,omitempty"`
	Hello  bool   `json:"hello,omitempty"`
}

// reply is a message from the guest.
type reply struct {
	ID    uint64 `json:"id,omitempty"`
	Out   []byte `json:"out,omitempty"`
	Err   []byte `json:"err,omitempty"`
	Exit  *Exit  `json:"exit,omitempty"`
	Hello bool   `json:"hello,omitempty"`
}

// Exit is how a command ended.
type Exit struct {
	// Code is the exit status, 128 plus the number of the signal that ended it (as a shell
	// says it), or 127 when it could not be started.
	Code int `json:"code"`
	// Error says why it could not be started.
	Error string `json:"error,omitempty"`
}

// chunk is the largest piece of output in one message. virtio-serial moves 4 KiB buffers, so
// larger messages save nothing but the JSON around them; 32 KiB makes that noise.
const chunk = 32 << 10
