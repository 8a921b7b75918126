package advisory

import "strconv"

// Hold is a lock that a session holds.
type Hold struct {
	Key  Key
	Mode Mode
}

// SQLHeld lists the locks of the session that asks, for [Held]. It costs the server a look at all locks: it is for repairs.
const SQLHeld = `SELECT (classid::int8 << 32) | objid::int8, objsubid = 2, mode = 'ShareLock'
  FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()`

// Held takes the rows of [SQLHeld], in the text format. False: they are not what was asked for.
func Held(rows [][][]byte) (map[Hold]bool, bool) {
	held := map[Hold]bool{}
	for _, row := range rows {
		if len(row) != 3 {
			return nil, false
		}
		id, err := strconv.ParseInt(string(row[0]), 10, 64)
		if err != nil {
			return nil, false
		}
		h := Hold{Key: Key{ID: id, Pair: string(row[1]) == "t"}}
		if string(row[2]) == "t" {
			h.Mode = Shared
		}
		held[h] = true
	}
	return held, true
}
