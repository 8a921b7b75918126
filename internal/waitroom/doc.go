// Package waitroom stands in the server's queues for the keys that this process waits for.
//
// # What it guarantees
//
//   - A waiting session holds nothing but, for a while, the gate of the key that it waits for. What any error
//     may have left it holding is given back before the session is used again, or dies with it.
//   - The processes that wait for a key stand at its gate, first in, first out; the first waits for
//     the key itself. It announces a turn when the key was free for it, and keeps the gate until the link has
//     the key: only a passer-by who never stood at the gate can be faster, and then it waits again, still
//     first.
//   - Each wait ends within a slice, so its snapshot holds nobody up and the server logs nothing.
//   - When more keys wait than there are sessions, the sessions go round, longest wait first, and once a second,
//     or more often while waits end, all keys without a session are tried in one statement.
//   - A wait that nobody wants any more is cancelled on the server.
//
// # What it does not
//
// A process whose slice ends before it is first in line joins the end of the gate's queue again; first in,
// first out holds within a slice. Once first, it stays first, unless other keys need its session.
package waitroom
