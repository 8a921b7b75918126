//go:build unix

package supervise

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// The orders of the caller and the reports of the keeper are lines: a word and numbers.
const (
	orderSignal = "signal" // number
	orderLive   = "live"   // until, by the system's clock in nanoseconds
	orderKill   = "kill"

	reportStarted = "started" // number of the process, which is its group's
	reportFailed  = "failed"  // the system's error
	reportStopped = "stopped"
	reportGone    = "gone" // exit status as a shell says it, 1 if the life has expired, processes left
)

// message is a line.
type message struct {
	word    string
	numbers []int64
}

func (m message) String() string {
	var text strings.Builder
	text.WriteString(m.word)
	for _, n := range m.numbers {
		text.WriteString(" " + strconv.FormatInt(n, 10))
	}
	return text.String() + "\n"
}

// number returns one of the numbers, 0 if it is missing.
func (m message) number(i int) int64 {
	if i >= len(m.numbers) {
		return 0
	}
	return m.numbers[i]
}

// send writes a message whole. The pipe takes it in one piece.
func send(w io.Writer, word string, numbers ...int64) error {
	_, err := io.WriteString(w, message{word, numbers}.String())
	return err
}

// receive calls f for each message until the pipe ends, or f reports that it was the last one.
func receive(r io.Reader, f func(message) (last bool)) error {
	for lines := bufio.NewReader(r); ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			return err
		}
		fields := strings.Fields(line)
		if len(fields) == 0 {
			return fmt.Errorf("a message is empty")
		}
		m := message{word: fields[0]}
		for _, field := range fields[1:] {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return fmt.Errorf("message %q: %w", line, err)
			}
			m.numbers = append(m.numbers, n)
		}
		if f(m) {
			return nil
		}
	}
}
