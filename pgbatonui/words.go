package pgbatonui

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pgbaton/pgbaton"
)

// The words of [pgbaton.LockInfo] and of findings.
const (
	stateHeld     = "held"
	kindTerm      = "term"
	kindPermit    = "permit"
	kindOnce      = "once"
	kindSet       = "set"
	engineSession = "session" // of a diagnosis

	levelOK      = "ok"
	levelWarning = "warning"
	levelError   = "error"

	termPrefix = "pgbaton/leader/" // of the name of a leader's lock
)

// termed is what the library makes of the lock of a leader's term.
func termed(l pgbaton.LockInfo) pgbaton.LockInfo {
	if name, ok := strings.CutPrefix(l.Name, termPrefix); ok {
		l.Kind, l.Name = kindTerm, name
	}
	return l
}

// label is the name of something, or its number.
func label(l pgbaton.LockInfo) string {
	if l.Name != "" {
		return plain(l.Name)
	}
	_, id, pair := l.Key.Parts()
	return number(id, pair)
}

// what names something for people.
func what(l pgbaton.LockInfo) string {
	switch {
	case l.Kind == kindPermit && l.Permits != 1:
		return fmt.Sprintf("%d permits of %s", l.Permits, label(l))
	case l.Kind == kindPermit:
		return "permit of " + label(l)
	case l.Kind == kindTerm:
		return "term of " + label(l)
	case l.Shared:
		return "shared lock " + label(l)
	}
	return "lock " + label(l)
}

// who names a client, or another program.
func who(l pgbaton.LockInfo) string {
	switch {
	case l.Client != "":
		return plain(l.Client)
	case l.Application != "":
		return plain(l.Application)
	case l.Session != 0:
		return fmt.Sprintf("session %d", l.Session)
	}
	return "unknown"
}

// where says where a client runs, as far as its name does not.
func where(l pgbaton.LockInfo) string {
	var parts []string
	at := fmt.Sprintf("%s:%d", l.Host, l.Process)
	switch {
	case l.Host != "" && l.Process != 0 && l.Client != at:
		parts = append(parts, fmt.Sprintf("%s, process %d", plain(l.Host), l.Process))
	case l.Client == "" && l.Application != "" && l.Session != 0:
		parts = append(parts, fmt.Sprintf("session %d", l.Session))
	}
	if l.Client == "" && l.Holder == 0 {
		parts = append(parts, "another program")
	}
	return strings.Join(parts, ", ")
}

// plain is a text that others have chosen, with what cannot be seen, or turns the line round, as Go quotes it.
func plain(text string) string {
	if utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return text
	}
	return strconv.Quote(text)
}
