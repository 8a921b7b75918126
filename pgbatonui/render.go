package pgbatonui

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton"
)

// snapshot is a reading that is drawn: for all viewers, and not changed afterwards.
type snapshot struct {
	number   uint64    // of the reading, from 1
	at       time.Time // by this process's clock
	now      time.Time // by the database's, or as near as is known
	sections map[string]section
	held     map[string]pgbaton.LockInfo // by what viewers name it, if it can be freed
}

// section is a part of the page, and the number of the reading that has changed it last.
type section struct {
	html    template.HTML
	changed uint64
}

//go:embed assets
var files embed.FS

var page = template.Must(template.ParseFS(files, "assets/page.html"))

// sectionNames are the templates of the parts that change.
var sectionNames = []string{"notice", "charts", "waiting", "held", "leaders", "semaphores", "runs", "endings", "health"}

// asset is a file of the page.
type asset struct {
	kind    string
	content []byte
	tag     string
}

var assets = map[string]*asset{
	"page.css": load("page.css", "text/css; charset=utf-8"),
	"page.js":  load("page.js", "text/javascript; charset=utf-8"),
	"icon.svg": load("icon.svg", "image/svg+xml"),
}

func load(name, kind string) *asset {
	content, err := files.ReadFile("assets/" + name)
	if err != nil {
		panic(err) // it is compiled in
	}
	sum := sha256.Sum256(content)
	return &asset{kind, content, `"` + hex.EncodeToString(sum[:8]) + `"`}
}

// serve answers with the file, which a browser asks for again each time and seldom gets anew.
func (a *asset) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", a.kind)
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", a.tag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(a.content))
}

// renderer draws readings, one after the other, and keeps their history.
type renderer struct {
	allow   bool
	history history
	read    bool // there was a reading without an error
}

func newRenderer(allow bool) *renderer { return &renderer{allow: allow} }

// render draws a reading.
func (r *renderer) render(from *reading, last *snapshot) *snapshot {
	s := &snapshot{number: 1, at: from.at, now: from.now, sections: map[string]section{}, held: map[string]pgbaton.LockInfo{}}
	if last != nil {
		s.number = last.number + 1
	}
	if s.now.IsZero() {
		s.now = from.at
		from.now = s.now
	}
	v := viewer{reading: from, allow: r.allow, held: s.held}
	shown := v.view()
	if from.err == nil {
		m := measures{held: shown.Numbers.Held, waiting: shown.Numbers.Waiting, took: from.took}
		if !shown.Numbers.Longest.IsZero() {
			m.longest = max(0, from.now.Sub(shown.Numbers.Longest.Time))
		}
		r.history.add(from.at, m)
	}
	shown.Charts = r.charts(from, shown)
	shown.Stale = r.read
	r.read = r.read || from.err == nil
	for _, name := range sectionNames {
		var html bytes.Buffer
		if err := page.ExecuteTemplate(&html, name, shown); err != nil {
			html.Reset()
			html.WriteString(template.HTMLEscapeString(fmt.Sprintf("This part cannot be drawn: %v", err)))
		}
		text := template.HTML(html.String()) //nolint:gosec // html/template has made it
		s.sections[name] = section{text, s.number}
		unknown := from.err != nil && name != "notice" && name != "charts" && name != "health"
		switch {
		case last != nil && (unknown || last.sections[name].html == text):
			s.sections[name] = last.sections[name] // what is no longer known stays
		case unknown:
			s.sections[name] = section{"", s.number} // it never was
		}
	}
	if from.err != nil && last != nil {
		s.held = last.held
	}
	return s
}

// charts are the last minutes.
func (r *renderer) charts(from *reading, shown *view) []shownChart {
	count := func(v float64) string { return strconv.Itoa(int(v)) }
	seconds := func(v float64) string { return (time.Duration(v) * time.Second).String() }
	millis := func(v float64) string { return strconv.Itoa(int(v)) + " ms" }
	h := &r.history
	waiting, held, longest, took := "–", "–", "–", "–"
	if from.err == nil {
		held, took = strconv.Itoa(shown.Numbers.Held), rounded(from.took)
	}
	if from.err == nil && !shown.Portable {
		waiting, longest = strconv.Itoa(shown.Numbers.Waiting), "none"
	}
	all := []shownChart{
		{h.chart(from.at, func(m measures) float64 { return float64(m.waiting) }, count), "waiting", "Waiting", waiting, moment{}},
		{h.chart(from.at, func(m measures) float64 { return m.longest.Seconds() }, seconds), "longest", "Longest wait", longest, shown.Numbers.Longest},
		{h.chart(from.at, func(m measures) float64 { return float64(m.held) }, count), "held", "Held", held, moment{}},
		{h.chart(from.at, func(m measures) float64 { return float64(m.took.Milliseconds()) }, millis), "took", "Reading takes", took, moment{}},
	}
	if shown.Portable {
		all[0].chart, all[1].chart = chart{Peak: "–"}, chart{Peak: "–"}
	}
	return all
}

// rounded is a duration that does not change with every reading.
func rounded(d time.Duration) string {
	for _, step := range []time.Duration{5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000} {
		if step *= time.Millisecond; d < step {
			return "< " + step.String()
		}
	}
	return "> 5s"
}

// writePage writes the whole page. Without a snapshot the parts are empty until the first event.
func writePage(w io.Writer, shown *snapshot, allow bool) error {
	data := struct {
		Sections  map[string]template.HTML
		Now       int64
		AllowFree bool
	}{map[string]template.HTML{}, 0, allow}
	if shown != nil {
		data.Now = shown.now.UnixMilli()
		for name, s := range shown.sections {
			data.Sections[name] = s.html
		}
	}
	return page.ExecuteTemplate(w, "page", data)
}
