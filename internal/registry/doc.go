// Package registry publishes what a client holds and waits for, so that it can be listed by name.
//
// # What it guarantees
//
//   - A lock that is held, or waited for, for less than a second costs nothing here: no statement, no clock, no memory of its own. All
//     work is that of one walk a second over what is held and what waits.
//   - What is there in two walks is published with the second, so one to two seconds after it began, and withdrawn with the walk that does
//     not find it. All of that is one statement at most once a second, and none when nothing has changed; that the client's session for
//     rows is another one is a change, too.
//   - A client has at most [Most] rows. It says how many more it could have published.
//   - A row is shown as long as its client lives and, of a lock that is held, as long as the server says that it is. So a row that
//     cannot be withdrawn, because the process is dead or the server is out of reach, is not shown, and others remove it.
//   - It takes no connection that locks want: it publishes when the sidecar has a session or there is room for one. When all
//     connections wait, as they do where something is stuck, the sidecar takes the place of one of them after some walks; what it
//     waited for is waited for in turns by the others.
//
// # What it does not
//
// It decides nothing: who holds what is known to the server, and the rows give names to that. A hand-over within the process of which
// both holders had the lock for less than a second leaves no trace. Where leases are rows with a name, a token and a holder, they are not published again; their waiters
// are, and a row of the client itself, with its host and its process, by the ids of the holders that it is. That row is written once for as long as
// the ids are the same, however many leases come and go. Waits that are watched for deadlocks are published by package waitgraph, in the same table.
//
// # The states of a grant
//
// A grant is here from the first walk that finds it until the first that does not.
//
//	          | found               | changed           | not found      | failed
//	unknown   | seen                | -                 | -              | -
//	seen      | published or more   | seen              | unknown        | -
//	more      | published or more   | seen              | unknown        | -
//	published | published           | seen, withdraw    | unknown, withdraw | seen, anew
//
// The events:
//
//   - found: a walk finds it as the one before did.
//   - changed: a walk finds it held that waited, at another session, or, of a wait for several keys, at the next of them.
//   - not found: a walk does not find it.
//   - failed: the statement that published it, or another one after it, was not answered: nobody knows which rows there are.
//
// A grant that is listed elsewhere is published, in this table, with the row of its client alone.
//
// More are the grants beyond [Most], which are counted. To withdraw a row is to delete it with the next statement; anew says that the next
// statement deletes all rows of the client before it adds those that are to be there.
package registry

import "time"

const (
	// Most is how many rows a client has at the most.
	Most = 1000
	// every is how often what is held is looked at.
	every = time.Second
	// patience bounds what a statement waits for, and after each failure it is longer by as much, up to mostPatience: a server so slow
	// that it never answers within a second would otherwise be asked for all of it again and again.
	patience     = time.Second
	mostPatience = 10 * patience
	// mostWalks is how many walks go by at the most before a statement is tried again that has failed: as many as have failed in a row.
	mostWalks = 10
	// sweepEvery is how often the client removes what the dead have left, at the most.
	sweepEvery = 10 * time.Second
	// overdue is for how many walks what is due waits for room, before a connection that waits is asked to leave.
	overdue = 3
	// touchEvery is how often a client behind a pooler says that it is there, while it has published something.
	touchEvery = 4 * time.Second
	// mostIDs bounds the sessions of a client, of which it has Config.MaxConns.
	mostIDs = 100
)
