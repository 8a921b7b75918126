package sessionengine

import "github.com/pgbaton/pgbaton/internal/engine"

// dealer gives out the tokens that a round trip drew, in their order. They serve the grants of that round trip and, after
// them, hand-overs of the same keys; never a later grant by the server, since its own round trip brings newer ones.
type dealer struct {
	draws []int64 // each represents tokensPerDraw
	used  int     // tokens
}

// tokens returns so many, or fewer where the next ones are not consecutive: another session drew in between.
func (d *dealer) tokens(want int) engine.Tokens {
	first, run := d.run()
	count := min(want, run)
	d.used += count
	return engine.TokensFrom(first, count)
}

// extend adds to the tokens that were dealt last the unused ones that follow them.
func (d *dealer) extend(tokens *engine.Tokens) {
	if d.used%tokensPerDraw != 0 {
		_, run := d.run()
		tokens.Extend(run)
	}
}

// run returns the next token, and how many from there on are consecutive.
func (d *dealer) run() (first int64, count int) {
	i, offset := d.used/tokensPerDraw, d.used%tokensPerDraw
	if i >= len(d.draws) {
		return 0, 0
	}
	count = tokensPerDraw - offset
	for ; i+1 < len(d.draws) && d.draws[i+1] == d.draws[i]+tokensPerDraw; i++ {
		count += tokensPerDraw
	}
	return d.draws[d.used/tokensPerDraw] + int64(offset), count
}
