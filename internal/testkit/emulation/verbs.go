package emulation

import (
	"slices"
	"strings"
)

// verb is what a statement does to its transaction.
type verb uint8

const (
	works   verb = iota // it reads or writes, and may fail
	begins              // a transaction
	commits             // the transaction
	aborts              // the transaction
	sets                // or shows a setting, does nothing, or runs outside transactions only; it does not fail
)

var verbs = map[string]verb{
	"BEGIN": begins, "START": begins, "COMMIT": commits, "END": commits, "ROLLBACK": aborts, "ABORT": aborts,
	"SET": sets, "RESET": sets, "SHOW": sets, "DISCARD": sets, "DEALLOCATE": sets, "SAVEPOINT": sets, "RELEASE": sets, "": sets,
	"VACUUM": sets, "REINDEX": sets, "CLUSTER": sets, "CHECKPOINT": sets, // these may run outside a transaction only
}

// verbOf returns the verb of one statement.
func verbOf(sql string) verb {
	words := strings.Fields(strings.ToUpper(strings.TrimLeft(skipBlank(sql), "( \t\r\n")))
	if len(words) == 0 {
		return sets
	}
	v := verbs[strings.TrimRight(words[0], ";")]
	if v == works && len(words) > 1 && slices.Contains([]string{"DATABASE", "TABLESPACE", "SYSTEM"}, words[1]) {
		return sets
	}
	if v == aborts && len(words) > 1 && (words[1] == "TO" || len(words) > 2 && words[2] == "TO") {
		return sets // ROLLBACK TO a savepoint
	}
	return v
}

// skipBlank skips white space and comments.
func skipBlank(sql string) string {
	for {
		sql = strings.TrimLeft(sql, " \t\r\n\f")
		n := comment(sql)
		if n == 0 {
			return sql
		}
		sql = sql[n:]
	}
}

// split cuts a text into its statements. A semicolon within quotes or a comment does not end one.
func split(sql string) (statements []string) {
	start := 0
	for i := 0; i < len(sql); {
		switch n := quoted(sql[i:]); {
		case n > 0:
			i += n
		case sql[i] == ';':
			statements = append(statements, sql[start:i])
			i++
			start = i
		default:
			i++
		}
	}
	if skipBlank(sql[start:]) != "" || len(statements) == 0 {
		statements = append(statements, sql[start:])
	}
	return statements
}

// quoted returns the length of the quoted text or comment that begins here, 0 if none does. A backslash quotes nothing, as in
// standard strings.
func quoted(sql string) int {
	switch sql[0] {
	case '\'', '"':
		if end := strings.IndexByte(sql[1:], sql[0]); end >= 0 {
			return end + 2
		}
		return len(sql)
	case '$':
		return dollar(sql)
	}
	return comment(sql)
}

// dollar returns the length of the dollar-quoted text that begins here, 0 if none does: $1 is a parameter.
func dollar(sql string) int {
	end := strings.IndexByte(sql[1:], '$')
	if end < 0 {
		return 0
	}
	tag := sql[:end+2]
	for i, r := range tag[1 : len(tag)-1] {
		letter := r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r > 127
		if !letter && (i == 0 || r < '0' || r > '9') {
			return 0
		}
	}
	if end = strings.Index(sql[len(tag):], tag); end < 0 {
		return len(sql)
	}
	return len(tag) + end + len(tag)
}

// comment returns the length of the comment that begins here, 0 if none does.
func comment(sql string) int {
	end := ""
	switch {
	case strings.HasPrefix(sql, "--"):
		end = "\n"
	case strings.HasPrefix(sql, "/*"):
		end = "*/"
	default:
		return 0
	}
	if n := strings.Index(sql, end); n >= 0 {
		return n + len(end)
	}
	return len(sql)
}
