// Package lockqueue waits in the server's queues for the keys that this process waits for.
//
// # What it guarantees
//
//   - A waiting session holds nothing but, for a while, the gate of the key that it waits for. All that an error
//     may have left it holding is given back before the session is used again, or dies with it.
//   - The processes that wait for a key wait at its gate, first in, first out; the first waits for
//     the key itself. It announces a turn when the key was free for it, and keeps the gate until the lock manager has
//     the key: only a passer-by that never was at the gate can be faster, and then it waits again, still
//     first.
//   - A process that freezes, or cannot be reached, keeps nobody waiting for more than a second and a half, whatever it
//     waits for: its wait under way ends within a slice, and the server ends its session after a second of silence. A turn
//     that the lock manager has not used within [turnLimit] is lost. While a turn goes on, its session says that it lives.
//   - Each wait ends within a slice, so its snapshot holds nobody up and the server logs nothing. Where
//     deadlock_timeout leaves no time to wait in, there are tries instead, and no order among the processes.
//   - When more keys wait than there are sessions, the sessions go round, longest wait first, and once a second,
//     or more often while waits end, all keys without a session are tried in one statement.
//   - A wait that nobody wants any longer is cancelled on the server.
//
// A [Wait] waits for several keys, or at a gate alone:
//
//   - Its session takes the keys one after the other in the order in which everybody takes them, each after its gate,
//     and keeps them. When it has all, it gives the keys back and keeps the gates: that is a turn, in which the owner
//     can take all of them in one round trip. A key that a passer-by has taken meanwhile is waited for again, still first at
//     all gates.
//   - Waits cannot be in a cycle: gates and keys are taken in one order by all, and a session that waits for one
//     key holds its gate and nothing else here.
//   - A session that gathers is the wait's for [gatherFor] at least. When others need it then, the wait gives everything
//     back and goes to the end of the line; the next time it has twice as long. So it does not block
//     others for ever, and keys that are released sooner or later do not keep it waiting for ever. Waits that are in
//     line meanwhile are not stuck, since they try. At a gate without a key a slice is enough.
//
// # What it does not
//
// A process whose slice ends before it is first in line joins the end of the gate's queue again; first in,
// first out holds within a slice. Once first, it stays first, unless other keys need its session. A process that
// freezes while it has a turn has lost it when it goes on, and waits anew.
package lockqueue
