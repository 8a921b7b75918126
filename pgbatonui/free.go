package pgbatonui

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton"
)

const (
	mostForm    = 8 << 10
	mostReason  = 800 // of the 1,000 bytes that the record takes
	freeTimeout = 15 * time.Second
)

// free frees what a viewer has chosen from the newest reading.
func (h *Handler) free(w http.ResponseWriter, r *http.Request) {
	if err := h.origins.Check(r); err != nil {
		http.Error(w, "That came from another site.", http.StatusForbidden)
		return
	}
	if h.cfg.FreeToken == "" {
		http.Error(w, "This page is read-only.", http.StatusForbidden)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, mostForm)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "The form cannot be read.", http.StatusBadRequest)
		return
	}
	if !h.permits(r.PostForm.Get("token")) {
		h.cfg.Logger.Warn("pgbatonui: a freeing was refused: the token is wrong", slog.String("from", r.RemoteAddr))
		http.Error(w, "The token is wrong.", http.StatusForbidden)
		return
	}
	shown, _ := h.readings.current()
	if shown == nil {
		http.Error(w, "There was no reading yet: nothing was freed.", http.StatusServiceUnavailable)
		return
	}
	held, ok := shown.held[r.PostForm.Get("held")]
	if !ok {
		http.Error(w, "The holder no longer has it.", http.StatusNotFound)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), freeTimeout)
	defer cancel()
	reason := h.reason(r)
	freed, err := h.freeHeld(ctx, held, &pgbaton.FreeOpts{Reason: reason, EndSession: r.PostForm.Get("end") == "session"})
	h.cfg.Logger.Info("pgbatonui: a holder was asked to give something back", slog.String("what", what(held)), slog.String("holder", held.Client),
		slog.String("reason", reason), slog.Any("error", err))
	limit(w)
	if err != nil {
		http.Error(w, strings.TrimPrefix(err.Error(), "pgbaton: "), statusOf(err, ctx.Err() != nil))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	text := "Freed: " + what(held) + "."
	if len(freed) > 1 {
		text = fmt.Sprintf("Freed: %s, and with its session %d more.", what(held), len(freed)-1)
	}
	_, _ = fmt.Fprintln(w, text) // a viewer that has gone sees it in the record
}

// reason is why, with who if that is known.
func (h *Handler) reason(r *http.Request) string {
	reason := strings.TrimSpace(r.PostForm.Get("reason"))
	if h.cfg.Who != nil {
		if who := h.cfg.Who(r); who != "" {
			reason = strings.TrimSpace(who + ": " + reason)
		}
	}
	reason = strings.ToValidUTF8(strings.ReplaceAll(reason, "\x00", ""), "")
	return strings.ToValidUTF8(reason[:min(len(reason), mostReason)], "") // a rune may have been cut
}

// statusOf is what an error of Free means to the page. 409 is that the holder was asked and does not answer, so that its session may be ended. An
// error that came after the time was over says nothing of the holder.
func statusOf(err error, over bool) int {
	switch {
	case over:
		return http.StatusGatewayTimeout
	case errors.Is(err, pgbaton.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, context.DeadlineExceeded) && !errors.As(err, new(*pgconn.ConnectError)): // connecting has a deadline of its own
		return http.StatusConflict
	}
	return http.StatusBadGateway
}
