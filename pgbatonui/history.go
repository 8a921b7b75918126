package pgbatonui

import (
	"fmt"
	"strings"
	"time"
)

const (
	span    = 15 * time.Minute
	grain   = 5 * time.Second
	points  = int(span / grain) // as wide as a chart is in the page
	chartH  = 40
	headway = 4 // of a chart, so that its highest line is not cut
)

// measures are what the charts show of a reading.
type measures struct {
	held, waiting int
	longest       time.Duration // wait
	took          time.Duration // of the reading
}

// point is the worst of some seconds.
type point struct {
	slot int64 // since the epoch, in grains; 0 for none
	measures
}

// history is what there was in the last minutes, in memory. Its size is fixed.
type history struct {
	ring [points]point
}

// add takes a reading's measures.
func (h *history) add(at time.Time, m measures) {
	slot := at.UnixNano() / int64(grain)
	p := &h.ring[int(slot%int64(points))]
	if p.slot != slot {
		*p = point{slot: slot, measures: m}
		return
	}
	p.held, p.waiting = max(p.held, m.held), max(p.waiting, m.waiting)
	p.longest, p.took = max(p.longest, m.longest), max(p.took, m.took)
}

// chart is one measure over time, drawn.
type chart struct {
	Line, Area string // paths
	Peak       string // for people
}

// chart draws a measure up to the last point that is complete, with gaps where there was no reading.
func (h *history) chart(now time.Time, value func(measures) float64, label func(float64) string) chart {
	last := now.UnixNano()/int64(grain) - 1
	first := last - int64(points) + 1
	top, known := 0.0, false
	at := func(slot int64) (float64, bool) {
		p := h.ring[int(slot%int64(points))]
		return value(p.measures), p.slot == slot
	}
	for slot := first; slot <= last; slot++ {
		if v, ok := at(slot); ok {
			top, known = max(top, v), true
		}
	}
	if !known {
		return chart{Peak: "–"}
	}
	var line, area strings.Builder
	begun, drawn := false, 0
	for slot := first; slot <= last+1; slot++ {
		v, ok := at(slot)
		ok = ok && slot <= last
		x := slot - first
		if !ok {
			if begun {
				fmt.Fprintf(&line, "H%d", x)
				fmt.Fprintf(&area, "H%dV%dZ", x, chartH)
			}
			begun = false
			continue
		}
		y := chartH - 1
		if top > 0 {
			y -= int(v / top * (chartH - headway))
		}
		switch {
		case !begun:
			fmt.Fprintf(&line, "M%d %d", x, y)
			fmt.Fprintf(&area, "M%d %dV%d", x, chartH, y)
			begun = true
		case y != drawn:
			fmt.Fprintf(&line, "H%dV%d", x, y)
			fmt.Fprintf(&area, "H%dV%d", x, y)
		}
		drawn = y
	}
	return chart{Line: line.String(), Area: area.String(), Peak: label(top)}
}
