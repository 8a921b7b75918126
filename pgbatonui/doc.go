// Package pgbatonui is a web page that shows who holds and who waits for what in a database, live. `pgbaton serve` serves it on loopback; a
// service can mount it behind its own login:
//
//	page, err := pgbatonui.New(client, pool, nil)
//	if err != nil { … }
//	defer page.Close()
//	mux.Handle("/locks/", requireLogin(http.StripPrefix("/locks", page)))
//
// The page has no login of its own: whoever reaches the handler sees all that the client's role may see, names of locks and of hosts among
// it. It is mounted at a path that ends in a slash.
//
// # What the handler guarantees
//
//   - It changes nothing, unless [Config.FreeToken] is set. Then a holder is freed by a POST that has the token, which is compared in constant
//     time, and that a browser has not sent for another site. No cookie is read or set.
//   - All viewers share one reading of the database. Readings begin at least a second apart, and at least twice the time that the last one took. A
//     minute after the last viewer has gone there are none.
//   - What it keeps is bounded: fifteen minutes of history in 180 points, the last 50 losses, and one reading. So is the page: 300 locks that
//     nobody waits for, 100 trees of waiters with 500 waiters and 300 holders, 300 leaders, 200 semaphores with 300 holders, and 100 runs; where there
//     are many trees or semaphores, two of each are shown above that. It says how many more there are.
//   - There are at most 100 viewers, with a stream or about to get a page. A viewer has ten seconds to take what is written.
//   - To end the session of a holder is offered only when the holder was asked and does not answer.
//   - All that others have chosen, such as names, is escaped by html/template, and control characters are shown as Go quotes them.
//   - A strict Content-Security-Policy allows no inline script or style, nothing from elsewhere, and no frame around the page.
//   - With [Config.Hosts], a request whose Host is another name gets nothing, so that no web site can read the page by pointing a name of its
//     own at it.
//   - After [Handler.Close] no stream and no goroutine is left.
//
// # What the role needs
//
// The client needs [pgbaton.Config.MaxConns] of 3 or more. An operator sees the names of all services and the freeings. What the schema has no
// function for is read from tables, where the role may; else the page says which GRANT is missing:
//
//	SELECT pgbaton.grant_operator('page');
//	GRANT SELECT ON pgbaton.semaphore, pgbaton.last_run, pgbaton.registry, pgbaton.sessions TO page;
package pgbatonui
