package advisory

import (
	"errors"
	"fmt"
	"strconv"
)

var errAnswer = errors.New("the server's list of locks does not fit the question")

// Hold is a lock that a session holds.
type Hold struct {
	Key  Key
	Mode Mode
}

// sqlHeld lists the locks of the session that asks. It costs the server a look at all locks: it is for repairs.
const sqlHeld = `SELECT (classid::int8 << 32) | objid::int8, objsubid = 2, mode = 'ShareLock'
  FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()`

// Held returns what a session holds, by what asks its server and returns rows in the text format.
func Held(query func(sql string) ([][][]byte, error)) (map[Hold]bool, error) {
	rows, err := query(sqlHeld)
	if err != nil {
		return nil, fmt.Errorf("ask which locks are held: %w", err)
	}
	held := map[Hold]bool{}
	for _, row := range rows {
		if len(row) != 3 {
			return nil, errAnswer
		}
		id, err := strconv.ParseInt(string(row[0]), 10, 64)
		if err != nil {
			return nil, errAnswer
		}
		h := Hold{Key: Key{ID: id, Pair: string(row[1]) == "t"}}
		if string(row[2]) == "t" {
			h.Mode = Shared
		}
		held[h] = true
	}
	return held, nil
}
