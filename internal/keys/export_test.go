package keys

// Check is the gate's decision alone, for the benchmark.
func (g *Gate) Check(info Info, t *Ticket) error {
	_, err := g.check(info, t)
	return err
}

// Forget drops the remembered checkpoints.
func (g *Gate) Forget() { g.seen = [seenCheckpoints]signedTree{} }
