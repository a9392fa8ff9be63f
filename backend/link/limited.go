package link

// Limited is a Link that carries less than any frame: a length of 16 bits, a datagram's size, a peer whose buffers are
// known. Nothing longer than MaxFrame is written to it, and its guest is offered no MTU that such a frame does not hold.
// A Link without it carries frames of MaxFrame bytes, the constant, and so does one whose own MaxFrame is 0.
type Limited interface {
	MaxFrame() int
}
