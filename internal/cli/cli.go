// Package cli holds what the subcommands of pgbaton share.
package cli

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

// Streams is what a subcommand uses of its process; tests give their own.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
}

// ErrReported means that the command failed and has already said how.
var ErrReported = errors.New("failed")

// UsageError reports that the command was called in a way that cannot work.
type UsageError struct {
	text string
}

func (e *UsageError) Error() string { return e.text }

// Usagef makes a [UsageError].
func Usagef(format string, args ...any) error {
	return &UsageError{text: fmt.Sprintf(format, args...)}
}

// ParseFlags parses the flags of a subcommand that takes no other arguments. Asked for help, it prints
// about and the flags, and returns [flag.ErrHelp].
func ParseFlags(flags *flag.FlagSet, args []string, std Streams, about string) error {
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		var text strings.Builder
		fmt.Fprintf(&text, "Usage: pgbaton %s [FLAGS]\n\n%s\nFlags:\n", flags.Name(), about)
		flags.SetOutput(&text)
		flags.PrintDefaults()
		_, _ = io.WriteString(std.Out, text.String())
		return flag.ErrHelp
	case err != nil:
		return Usagef("%v", err)
	case flags.NArg() > 0:
		// The argument is not repeated: it may be a database URL with a password.
		return Usagef("takes flags only; the database is given by --database-url or DATABASE_URL")
	}
	return nil
}
