package netconf

func parse(stdin []byte, env Env) (*Network, error) { panic("unwritten") }
func decodeNode(data []byte) (Node, error)          { panic("unwritten") }
