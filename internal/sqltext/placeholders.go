package sqltext

import (
	"fmt"
	"strings"
)

// CheckPlaceholders reports in which way the placeholders $1, $2, … of a piece of SQL do not fit so many arguments: each
// argument must be used, and nothing beyond them, where the caller's text would meet a parameter of ours.
func CheckPlaceholders(sql string, args int) error {
	used := make([]bool, args)
	for _, n := range placeholdersOf(sql) {
		switch {
		case n < 1:
			return fmt.Errorf("$%d is no placeholder: the first is $1", n)
		case n > args:
			return fmt.Errorf("$%d is used, and there are %d arguments", n, args)
		}
		used[n-1] = true
	}
	for i, ok := range used {
		if !ok {
			return fmt.Errorf("argument %d is given, and $%d is not used", i+1, i+1)
		}
	}
	return nil
}

// placeholdersOf are the numbers of the placeholders in a piece of SQL, as PostgreSQL's scanner finds them: not in
// strings, quoted names, comments or the middle of a name.
func placeholdersOf(sql string) []int {
	var found []int
	for i := 0; i < len(sql); {
		rest := sql[i:]
		switch c := rest[0]; {
		case (c == 'e' || c == 'E') && strings.HasPrefix(rest[1:], "'"):
			i += 1 + stringLength(rest[1:], true)
		case isNameStart(c):
			i += nameLength(rest)
		case c == '\'':
			i += stringLength(rest, false)
		case c == '"':
			i += delimited(rest, `"`, `"`)
		case strings.HasPrefix(rest, "--"):
			i += lineLength(rest)
		case strings.HasPrefix(rest, "/*"):
			i += commentLength(rest)
		case c == '$':
			n, length := placeholder(rest)
			if length > 1 {
				found = append(found, n)
				i += length
				continue
			}
			i += dollarStringLength(rest)
		default:
			i++
		}
	}
	return found
}

func isNameStart(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// nameLength counts the bytes of an unquoted name, which may have a $ in it.
func nameLength(sql string) int {
	n := 1
	for n < len(sql) && (isNameStart(sql[n]) || isDigit(sql[n]) || sql[n] == '$') {
		n++
	}
	return n
}

// stringLength counts the bytes of a string constant. A doubled quote is read as the end of one string and the begin of
// the next, which comes to the same.
func stringLength(sql string, escapes bool) int {
	for n := 1; n < len(sql); n++ {
		switch {
		case escapes && sql[n] == '\\':
			n++
		case escapes && sql[n] == '\'' && strings.HasPrefix(sql[n+1:], "'"):
			n++
		case sql[n] == '\'':
			return n + 1
		}
	}
	return len(sql)
}

// delimited counts the bytes from the opening mark to the end of the next closing one.
func delimited(sql, opening, closing string) int {
	if end := strings.Index(sql[len(opening):], closing); end >= 0 {
		return len(opening) + end + len(closing)
	}
	return len(sql)
}

func lineLength(sql string) int {
	if end := strings.IndexAny(sql, "\r\n"); end >= 0 {
		return end
	}
	return len(sql)
}

// commentLength counts the bytes of a comment, in which there may be others.
func commentLength(sql string) int {
	depth := 0
	for n := 0; n+1 < len(sql); n++ {
		switch sql[n : n+2] {
		case "/*":
			depth++
			n++
		case "*/":
			n++
			if depth--; depth == 0 {
				return n + 1
			}
		}
	}
	return len(sql)
}

// placeholder reads $n. The length is 1 if there is no number behind the dollar.
func placeholder(sql string) (n, length int) {
	for length = 1; length < len(sql) && isDigit(sql[length]); length++ {
		n = min(n*10+int(sql[length]-'0'), maxArgs+1)
	}
	return n, length
}

// dollarStringLength counts the bytes of $$…$$ or $tag$…$tag$; a lone dollar is one byte.
func dollarStringLength(sql string) int {
	end := strings.IndexByte(sql[1:], '$') + 1
	if end < 1 {
		return 1
	}
	for i, c := range []byte(sql[1:end]) {
		if !isNameStart(c) && (i == 0 || !isDigit(c)) {
			return 1
		}
	}
	mark := sql[:end+1]
	return delimited(sql, mark, mark)
}
