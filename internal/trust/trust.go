// Package trust says for how long a client believes that the server still holds for it what it held.
package trust

import "time"

// Span is how long after a message was sent its answer shows that what is held is held. The margin before the end of
// TTL, a tenth of it, is for telling the holders before the server can give to others what they hold.
func Span(ttl time.Duration) time.Duration { return ttl - ttl/10 }
