package pgbatonui

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

// ask sends a request to a handler.
func ask(h http.Handler, method, path string, form url.Values, header map[string]string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://localhost:5480"+path, strings.NewReader(form.Encode()))
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for name, value := range header {
		if name == "Host" {
			r.Host = value
		}
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// TestHeaders holds that every answer has them, refusals as well.
func TestHeaders(t *testing.T) {
	t.Parallel()
	h := shown(t, Config{Hosts: []string{"localhost"}})
	for _, path := range []string{"/", "/page.css", "/page.js", "/icon.svg", "/nothing"} {
		w := ask(h, "GET", path, nil, nil)
		require.Equal(t, policy, w.Header().Get("Content-Security-Policy"), path)
		require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"), path)
		require.Empty(t, w.Header().Get("Set-Cookie"), path)
	}
	require.NotContains(t, policy, "unsafe")
	page := ask(h, "GET", "/", nil, nil).Body.String()
	require.NotRegexp(t, `<script>|<style|\son[a-z]+=|\sstyle=|https?://`, page, "the policy would refuse it")
	require.Equal(t, http.StatusMethodNotAllowed, ask(h, "POST", "/", url.Values{}, nil).Code)
	tag := ask(h, "GET", "/page.js", nil, nil).Header().Get("ETag")
	require.Equal(t, http.StatusNotModified, ask(h, "GET", "/page.js", nil, map[string]string{"If-None-Match": tag}).Code)
}

// TestHosts: a page on loopback is not read by another name.
func TestHosts(t *testing.T) {
	t.Parallel()
	h := shown(t, Config{Hosts: []string{"localhost", "127.0.0.1", "::1"}})
	for host, code := range map[string]int{
		"localhost": 200, "LOCALHOST:1": 200, "127.0.0.1:9": 200, "[::1]:5480": 200, "[::1]": 200,
		"evil.example": 421, "evil.example:5480": 421, "localhost.evil.example": 421, "127.0.0.1.evil.example": 421, "": 421, "[": 421,
	} {
		for _, path := range []string{"/", "/page.js", "/free"} {
			if got := ask(h, "GET", path, nil, map[string]string{"Host": host}); code == 421 || path != "/free" {
				require.Equal(t, code, got.Code, "%s %s", host, path)
			}
		}
	}
	require.Equal(t, 200, ask(shown(t, Config{}), "GET", "/", nil, map[string]string{"Host": "service.example"}).Code)
}

// TestEscaping: what others have chosen is text.
func TestEscaping(t *testing.T) {
	t.Parallel()
	const evil = `"><script>alert(1)</script>'&`
	h := newHandler(nil, Config{FreeToken: token}, func(context.Context) *reading {
		r := showcase(time.Now())
		for i := range r.locks {
			if l := &r.locks[i]; l.Name != "" {
				l.Name, l.Key, l.Client, l.Host, l.Application = evil, pgbaton.Name(evil), evil, evil, evil
			}
		}
		r.runs[1].name = "turn \u202e round\n"
		r.semaphores[0].name, r.runs[2].name, r.runs[2].err, r.losses[0].what, r.losses[0].whom = evil, evil, evil, evil, evil
		r.freeings[0].reason, r.freeings[0].name, r.freeings[0].client, r.database = evil, evil, evil, evil
		r.findings[0].Says, r.missing["semaphore"] = evil, evil
		return r
	})
	defer h.Close()
	page := ask(h, "GET", "/", nil, nil).Body.String()
	require.Contains(t, page, "&lt;script&gt;alert(1)")
	require.Equal(t, 1, strings.Count(page, "<script"), "its own")
	require.NotContains(t, page, "alert(1)</script>")
	require.NotContains(t, page, "\u202e")
	require.Contains(t, page, `turn \u202e round\n`)
}

// TestFree_Refused: nothing is freed without the token, by another method, or for another site.
func TestFree_Refused(t *testing.T) {
	t.Parallel()
	h := shown(t, Config{FreeToken: token})
	require.Contains(t, ask(h, "GET", "/", nil, nil).Body.String(), `data-held=`)
	form := func(token string) url.Values { return url.Values{"token": {token}, "held": {"nothing"}} }
	for name, c := range map[string]struct {
		method string
		form   url.Values
		header map[string]string
		code   int
		says   string
	}{
		"NoToken":    {"POST", form(""), nil, 403, "token is wrong"},
		"WrongToken": {"POST", form(token + "x"), nil, 403, "token is wrong"},
		"InURL":      {"POST", url.Values{}, nil, 403, "token is wrong"},
		"ByGET":      {"GET", nil, nil, 405, ""},
		"OtherSite":  {"POST", form(token), map[string]string{"Sec-Fetch-Site": "cross-site"}, 403, "another site"},
		"SameSite":   {"POST", form(token), map[string]string{"Sec-Fetch-Site": "same-site"}, 403, "another site"},
		"Origin":     {"POST", form(token), map[string]string{"Origin": "http://evil.example"}, 403, "another site"},
		"Gone":       {"POST", form(token), map[string]string{"Sec-Fetch-Site": "same-origin"}, 404, "no longer has it"},
		"TooLong":    {"POST", url.Values{"reason": {strings.Repeat("x", mostForm)}}, nil, 400, "cannot be read"},
	} {
		path := "/free"
		if name == "InURL" {
			path += "?token=" + url.QueryEscape(token)
		}
		w := ask(h, c.method, path, c.form, c.header)
		require.Equal(t, c.code, w.Code, name)
		require.Contains(t, w.Body.String(), c.says, name)
	}

	closed := shown(t, Config{})
	page := ask(closed, "GET", "/", nil, nil).Body.String()
	require.NotContains(t, page, "data-held=")
	require.NotContains(t, page, "<dialog")
	require.Equal(t, 403, ask(closed, "POST", "/free", form(""), nil).Code)
}

// freeable is a page of one holder, whose freeing does as it is told, and the form that frees it.
func freeable(t *testing.T, free func(context.Context) error) (*Handler, url.Values) {
	t.Helper()
	h := shown(t, Config{FreeToken: token})
	h.freeHeld = func(ctx context.Context, _ pgbaton.LockInfo, _ *pgbaton.FreeOpts) ([]pgbaton.LockInfo, error) {
		return []pgbaton.LockInfo{{}}, free(ctx)
	}
	return h, url.Values{"token": {token}}
}

// TestFree_Answers: 409, with which the page offers to end a session, is only that of a holder that was asked and does not answer.
func TestFree_Answers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		free func(context.Context) error
		code int
	}{
		"Freed":    {func(context.Context) error { return nil }, 200},
		"Gone":     {func(context.Context) error { return fmt.Errorf("%w: it is over", pgbaton.ErrNotFound) }, 404},
		"NoAnswer": {func(context.Context) error { return fmt.Errorf("%w: not within 2s", context.DeadlineExceeded) }, 409},
		"NoTime":   {func(ctx context.Context) error { <-ctx.Done(); return fmt.Errorf("perhaps: %w", ctx.Err()) }, 504},
		"NoConnection": {func(ctx context.Context) error {
			hung, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, err := pgconn.ConnectConfig(hung, hanging(t))
			return err
		}, 502},
		"Other": {func(context.Context) error { return errAway }, 502},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h, form := freeable(t, c.free)
				ask(h, "GET", "/", nil, nil)
				s, _ := h.readings.current()
				form.Set("held", slices.Collect(maps.Keys(s.held))[0])
				require.Equal(t, c.code, ask(h, "POST", "/free", form, nil).Code)
			})
		})
	}
	h, form := freeable(t, nil)
	w := ask(h, "POST", "/free", form, nil)
	require.Equal(t, 503, w.Code)
	require.Contains(t, w.Body.String(), "There was no reading yet")
}

// hanging is how to connect to a server that does not answer.
func hanging(t *testing.T) *pgconn.Config {
	t.Helper()
	config, err := pgconn.ParseConfig("postgres://nobody@db.example/nowhere?sslmode=disable")
	require.NoError(t, err)
	config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"192.0.2.1"}, nil }
	config.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
	return config
}

func TestNew_Refuses(t *testing.T) {
	t.Parallel()
	_, err := New(nil, nil, nil)
	require.ErrorContains(t, err, "nil")
	_, err = New(&pgbaton.Client{}, pgbaton.SQLDB(nil), &Config{FreeToken: "short"})
	require.ErrorContains(t, err, "the least is 16")
	_, err = New(&pgbaton.Client{}, pgbaton.SQLDB(nil), &Config{Names: make([]string, 1001)})
	require.ErrorContains(t, err, "the most is 1000")
}

// stream reads the events of a page.
func stream(t *testing.T, server *httptest.Server) (next func() event, gone func() bool) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/events", nil)
	require.NoError(t, err)
	answer, err := server.Client().Do(r)
	require.NoError(t, err)
	t.Cleanup(func() { _ = answer.Body.Close() })
	require.Equal(t, "text/event-stream; charset=utf-8", answer.Header.Get("Content-Type"))
	lines := bufio.NewReader(answer.Body)
	next = func() event {
		for {
			line, err := lines.ReadString('\n')
			require.NoError(t, err)
			if data, ok := strings.CutPrefix(line, "data: "); ok {
				var e event
				require.NoError(t, json.Unmarshal([]byte(data), &e))
				return e
			}
		}
	}
	return next, func() bool {
		for {
			if _, err := lines.ReadString('\n'); err != nil {
				return true
			}
		}
	}
}

// TestEvents: a viewer gets the whole page, then what changes, all from one row of readings; a failed one says so, and Close ends it.
func TestEvents(t *testing.T) {
	t.Parallel()
	var state atomic.Int32
	h := newHandler(nil, Config{}, func(context.Context) *reading {
		r := showcase(time.Unix(1_800_000_000, 0))
		r.at = time.Now()
		switch state.Load() {
		case 1:
			r.locks[0].Client = "somebody-else"
		case 2:
			*r = reading{at: r.at, err: errAway, missing: map[string]string{}}
		}
		return r
	})
	h.readings.every = time.Millisecond
	server := httptest.NewServer(h)
	defer server.Close()
	defer h.Close()
	next, gone := stream(t, server)
	first := next()
	require.Len(t, first.Sections, len(sectionNames))
	require.Equal(t, int64(1_800_000_000_000), first.Now)
	require.Contains(t, first.Sections["waiting"], "billing-2")
	untilChange := func(name string) event {
		for {
			if e := next(); e.Sections[name] != "" {
				return e
			}
		}
	}
	state.Store(1)
	changed := untilChange("waiting")
	require.Contains(t, changed.Sections["waiting"], "somebody-else")
	require.NotContains(t, changed.Sections, "leaders", "what has not changed is not sent")
	state.Store(2)
	failed := untilChange("notice")
	require.Contains(t, failed.Sections["notice"], "connection refused &lt;now&gt;")
	require.NotContains(t, failed.Sections, "waiting", "what was known stays")
	require.NoError(t, h.Close())
	require.True(t, gone())
	require.Equal(t, http.StatusServiceUnavailable, ask(h, "GET", "/events", nil, nil).Code)
}

// TestViewers_Bounded: there are so many viewers and no more, whether they have a stream or get a page.
func TestViewers_Bounded(t *testing.T) {
	t.Parallel()
	h := shown(t, Config{})
	for range mostViewers {
		require.True(t, h.enter())
		t.Cleanup(h.exit)
	}
	for _, path := range []string{"/events", "/"} {
		w := ask(h, "GET", path, nil, nil)
		require.Equal(t, http.StatusServiceUnavailable, w.Code, path)
		require.NotEmpty(t, w.Header().Get("Retry-After"), path)
	}
}

// slowViewer looks at the handler at each write, as one may that takes all of its time.
type slowViewer struct {
	*httptest.ResponseRecorder
	wrote    func()
	deadline time.Time
}

func (s *slowViewer) Write(b []byte) (int, error) { s.wrote(); return s.ResponseRecorder.Write(b) }

func (s *slowViewer) SetWriteDeadline(t time.Time) error { s.deadline = t; return nil }

// TestViewers_Slow: for a viewer that is slow to take what is written nothing is read, it counts as a viewer, and its time is bounded.
func TestViewers_Slow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := shown(t, Config{})
		writes := 0
		w := &slowViewer{ResponseRecorder: httptest.NewRecorder()}
		w.wrote = func() {
			writes++
			h.readings.mu.Lock()
			defer h.readings.mu.Unlock()
			require.Zero(t, h.readings.watchers)
			require.Equal(t, 1, h.viewers)
			require.Equal(t, time.Now().Add(writeTimeout), w.deadline)
		}
		h.readings.make = late(firstWait/2, h.readings.make)
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		require.NotZero(t, writes)
		require.Contains(t, w.Body.String(), "invoice/42")
		for _, path := range []string{"/page.js", "/nothing", "/free"} {
			w = &slowViewer{ResponseRecorder: httptest.NewRecorder(), wrote: func() {}}
			h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, nil))
			require.Equal(t, time.Now().Add(writeTimeout), w.deadline, path)
		}
	})
}

// late makes readings that take some time.
func late(takes time.Duration, read func(context.Context, *snapshot) *snapshot) func(context.Context, *snapshot) *snapshot {
	return func(ctx context.Context, last *snapshot) *snapshot {
		select {
		case <-time.After(takes):
		case <-ctx.Done():
		}
		return read(ctx, last)
	}
}

// TestClose_First: Close does not wait for a viewer who waits for the first reading; the viewer gets a page without one.
func TestClose_First(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := shown(t, Config{})
		h.readings.make = late(time.Hour, h.readings.make)
		begun := time.Now()
		code := make(chan int, 1)
		go func() { code <- ask(h, "GET", "/", nil, nil).Code }()
		synctest.Wait()
		require.NoError(t, h.Close())
		require.Equal(t, begun, time.Now(), "by the test's own clock")
		require.Equal(t, 200, <-code)
		require.Equal(t, 503, ask(h, "GET", "/", nil, nil).Code)
	})
}
