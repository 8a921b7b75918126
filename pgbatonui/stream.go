package pgbatonui

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

const (
	mostViewers  = 100
	writeTimeout = 10 * time.Second // of a page, or of one event, to one viewer
)

// events streams what changes on the page, as server-sent events, until the viewer or the handler goes. A viewer that reads slowly misses
// readings, and is brought up to date by the next.
func (h *Handler) events(w http.ResponseWriter, r *http.Request) {
	if !h.enter() {
		refuse(w)
		return
	}
	defer h.exit()
	leave := h.readings.watch()
	defer leave()
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.Header().Set("X-Accel-Buffering", "no") // proxies that buffer
	out := http.NewResponseController(w)
	if _, err := fmt.Fprint(w, "retry: 2000\n\n"); err != nil || out.Flush() != nil {
		return
	}
	sent := uint64(0)
	for {
		shown, changed := h.readings.current()
		if shown != nil && shown.number > sent {
			if send(w, out, shown, sent) != nil {
				return
			}
			sent = shown.number
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		case <-h.ctx.Done():
			return
		}
	}
}

// event is one message to a viewer.
type event struct {
	Now      int64             `json:"now"`      // milliseconds, by the database's clock
	Sections map[string]string `json:"sections"` // those that have changed
}

// send writes the sections that are newer than the viewer's.
func send(w http.ResponseWriter, out *http.ResponseController, shown *snapshot, since uint64) error {
	e := event{Now: shown.now.UnixMilli(), Sections: map[string]string{}}
	for name, s := range shown.sections {
		if s.changed > since {
			e.Sections[name] = string(s.html)
		}
	}
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	limit(w)
	if _, err = fmt.Fprintf(w, "data: %s\n\n", text); err != nil {
		return err
	}
	return out.Flush()
}

// refuse answers a viewer for whom there is no room.
func refuse(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "10")
	http.Error(w, "There are too many viewers, or the page is ending.", http.StatusServiceUnavailable)
}

// enter counts a viewer in, and reports whether there is room.
func (h *Handler) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.viewers >= mostViewers {
		return false
	}
	h.viewers++
	h.answers.Add(1)
	return true
}

func (h *Handler) exit() {
	h.mu.Lock()
	h.viewers--
	h.mu.Unlock()
	h.answers.Done()
}
