package lab

// console is what a node says and hears on its serial line, or what its command writes.
type console struct{}
