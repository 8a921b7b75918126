package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
)

const barWidth = 30

// progress shows on stderr how far the demo is: one line that is drawn over and over on a terminal, and
// one line for each section that has ended elsewhere.
type progress struct {
	w        io.Writer
	terminal bool

	section string
}

func newProgress(w io.Writer) *progress {
	return &progress{w: w, terminal: isTerminal(w)}
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// begin names the section that update and end speak of.
func (p *progress) begin(number, of int, title string) {
	p.section = fmt.Sprintf("%d/%d %s", number, of, title)
	p.update(0, "")
}

// update draws the bar; done is from 0 to 1.
func (p *progress) update(done float64, note string) {
	if !p.terminal {
		return
	}
	done = min(max(done, 0), 1)
	full := int(done * barWidth)
	bar := strings.Repeat("#", full) + strings.Repeat(".", barWidth-full)
	_, _ = fmt.Fprintf(p.w, "\r\x1b[K%-26s [%s] %3.0f%%  %s", p.section, bar, done*100, note)
}

// end takes the bar away, or writes the section's line.
func (p *progress) end(note string) {
	if p.terminal {
		_, _ = fmt.Fprint(p.w, "\r\x1b[K")
		return
	}
	_, _ = fmt.Fprintf(p.w, "%s: %s\n", p.section, note)
}
