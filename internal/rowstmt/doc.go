// Package rowstmt runs statements on the rows of a table that the library knows nothing of beforehand: it looks up what
// must be known about the table, and tries again where another try may end otherwise.
//
// A statement on a row can fail for reasons that have nothing to do with the row's contents, and that another try
// settles. In the caller's transaction such a try needs a savepoint, because an error aborts what it is part of.
//
//   - A time limit (RowOpts.Wait, ClaimOpts.Wait): set for the statement alone, in a savepoint. It is set before
//     the statement is sent, because the lock on the table is waited for while the statement is still parsed.
//   - A row that was moved to another partition while it was waited for, or since the statement began: SQLSTATE 40001
//     even in read committed. The statement is sent again and finds the row where it is now. Tables where this can
//     happen (see Facts) get the savepoint without being asked.
//   - A plan that was made before the table was altered: pgx drops it, and the next try makes another.
//   - A row that was replaced by another of the same key: UnsettledError, by a look after the statement.
//
// Outside of a transaction each statement is one of its own, and is sent again without more ado.
package rowstmt
