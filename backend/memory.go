package backend

func (n *Network) memoryLimit() []LimitInfo { return nil }
