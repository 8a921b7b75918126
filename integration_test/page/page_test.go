// Package page tests the page in a browser: a headless Chromium, as a viewer has it.
package page

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
	"github.com/pgbaton/pgbaton/pgbatonui"
)

const token = "a token of the tests"

// viewer is a tab of a browser.
type viewer struct {
	t   *testing.T
	ctx context.Context //nolint:containedctx // of the tab

	mu       sync.Mutex
	problems []string // what the console has said that is wrong
}

// view opens a tab. It needs a Chromium: ensure-chromium.sh installs one.
func view(t *testing.T) *viewer {
	t.Helper()
	v := &viewer{t: t}
	allocated, end := chromedp.NewExecAllocator(testkit.Context(t), chromedp.Headless, chromedp.NoSandbox, chromedp.WSURLReadTimeout(testkit.Patience),
		chromedp.Flag("disable-dev-shm-usage", true))
	ctx, cancel := chromedp.NewContext(allocated, chromedp.WithListener(func(ev any) {
		switch e := ev.(type) {
		case *runtime.EventExceptionThrown:
			v.problem("exception: " + e.ExceptionDetails.Text)
		case *runtime.EventConsoleAPICalled:
			v.problem(fmt.Sprintf("console.%s", e.Type))
		case *log.EventEntryAdded:
			v.problem(fmt.Sprintf("%s: %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL))
		}
	}))
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits for the browser's end
		cancel()
		end()
	})
	v.ctx = ctx
	require.NoError(t, chromedp.Do(ctx), "this test needs Chromium: integration_test/ensure-chromium.sh")
	_, err := chromedp.Call(ctx, log.Enable, cdp.Empty{})
	require.NoError(t, err)
	return v
}

func (v *viewer) problem(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.problems = append(v.problems, text)
}

// do acts as the viewer does.
func (v *viewer) do(actions ...chromedp.Action[chromedp.Void]) {
	v.t.Helper()
	require.NoError(v.t, chromedp.Do(v.ctx, actions...))
}

// value is what an expression of the page's is.
func value[T any](v *viewer, expression string) T {
	v.t.Helper()
	result, err := chromedp.Run(v.ctx, chromedp.Evaluate[T](expression))
	require.NoError(v.t, err, expression)
	return result
}

// until waits until an expression of the page's is true.
func (v *viewer) until(what, expression string) {
	v.t.Helper()
	testkit.Eventually(v.t, what, func() bool { return value[bool](v, expression) })
}

// has waits until a part of the page has a text.
func (v *viewer) has(part, text string) {
	v.t.Helper()
	v.until(part+" has "+text, fmt.Sprintf("document.getElementById(%q).textContent.includes(%q)", part, text))
}

// hasNot waits until it has not.
func (v *viewer) hasNot(part, text string) {
	v.t.Helper()
	v.until(part+" has not "+text, fmt.Sprintf("!document.getElementById(%q).textContent.includes(%q)", part, text))
}

// focused is the label, or the text, of what has the keyboard.
func (v *viewer) focused() string {
	return value[string](v, "document.activeElement.ariaLabel || document.activeElement.name || document.activeElement.id || document.activeElement.textContent")
}

// requireFits holds that there is nothing to scroll to the side at a width.
func (v *viewer) requireFits(width int64) {
	v.t.Helper()
	const height = 844
	v.do(chromedp.EmulateViewport(width, height))
	v.until("the page has its width", fmt.Sprintf("window.innerWidth === %d", width))
	require.LessOrEqual(v.t, value[int64](v, "document.documentElement.scrollWidth"), width)
	require.Empty(v.t, value[[]string](v, `[...document.querySelectorAll("main *")].filter((e) =>
		e.getBoundingClientRect().right > innerWidth + 0.5 && !e.closest("svg")).map((e) => e.outerHTML.slice(0, 100))`))
}

func (v *viewer) requireNoProblem() {
	v.t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	require.Empty(v.t, v.problems)
}

// TestPage: what is in the database is shown, changes by itself, and is freed with the keyboard alone.
func TestPage(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	anna := testclient.New(t, dsn, &pgbaton.Config{Name: "anna"})
	bert := testclient.New(t, dsn, &pgbaton.Config{Name: "bert"})
	evil := "<img src=x onerror=alert(1)> " + strings.Repeat("long", 50)
	lock, err := anna.Acquire(ctx, pgbaton.Name("invoice/42"))
	require.NoError(t, err)
	_, err = anna.Acquire(ctx, pgbaton.Name(evil))
	require.NoError(t, err)
	sem, err := anna.Semaphore(ctx, "render", 8)
	require.NoError(t, err)
	_, err = sem.Acquire(ctx, 5)
	require.NoError(t, err)
	page, err := pgbatonui.New(testclient.New(t, dsn, &pgbaton.Config{Name: "page"}), testkit.Pool(t, dsn), &pgbatonui.Config{FreeToken: token})
	require.NoError(t, err)
	gate := &between{page: page}
	server := httptest.NewServer(gate)
	t.Cleanup(func() {
		require.NoError(t, page.Close())
		server.Close()
	})

	v := view(t)
	v.do(chromedp.Navigate(server.URL))
	v.until("it is live", `document.getElementById("live").textContent === "live"`)
	v.has("held", evil)
	v.has("held", "invoice/42")
	v.has("semaphores", "5 of 8")
	v.has("waiting", "Nobody waits.")

	// It changes by itself, and what the viewer has opened stays open.
	v.do(chromedp.Click(chromedp.CSS("#semaphores summary")))
	got := make(chan error, 1)
	go func() {
		_, err := bert.Acquire(ctx, pgbaton.Name("invoice/42"))
		got <- err
	}()
	v.has("waiting", "bert")
	v.has("waiting", "anna")
	_, err = sem.Acquire(ctx, 1)
	require.NoError(t, err)
	v.has("semaphores", "6 of 8")
	require.True(t, value[bool](v, `document.querySelector("#semaphores details").open`))
	const age = `document.querySelector("#waiting .waiters time").textContent`
	v.until("it has an age", `/^(\d+m ?)?\d+s$/.test(`+age+`)`)
	young := value[string](v, age)
	v.until("ages go on", fmt.Sprintf(`%s !== %q && /^(\d+m ?)?\d+s$/.test(%s)`, age, young, age))

	// What is looked for is left.
	// The key alone: a tool's typing of its character does not heed that the page has taken it.
	v.do(chromedp.Evaluate[chromedp.Void](`document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "/", bubbles: true}))`),
		chromedp.KeyEvent("invoice"))
	require.Equal(t, "find", v.focused())
	require.Equal(t, 0, value[int](v, `[...document.querySelectorAll("#held [data-find]")].filter((e) => !e.hidden).length`))
	require.Equal(t, 1, value[int](v, `[...document.querySelectorAll("#waiting [data-find]")].filter((e) => !e.hidden).length`))
	v.do(chromedp.KeyEvent(kb.Escape))

	for _, width := range []int64{320, 390, 768, 1280} {
		v.requireFits(width)
	}
	v.requireNoProblem()
	v.free("Free lock invoice/42, held by anna")
	<-lock.Done()
	require.Contains(t, lock.Err().Error(), "it hangs")
	require.NoError(t, <-got)
	v.has("endings", "it hangs")
	v.hasNot("waiting", "bert")
	v.requireNoProblem()

	v.refused(gate, server)
	_, err = anna.Acquire(ctx, pgbaton.Name("after all that"))
	require.NoError(t, err)
	v.has("held", "after all that")
	v.answers(gate)
}

// between is what stands before a page, as a proxy or a login does. It can answer in the page's place when the script asks.
type between struct {
	page http.Handler
	code atomic.Int32
	kind atomic.Value // of its answers
}

func (b *between) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	code := int(b.code.Load())
	if code == 0 || r.URL.Path != "/events" && r.URL.Path != "/free" {
		b.page.ServeHTTP(w, r)
		return
	}
	kind, _ := b.kind.Load().(string)
	w.Header().Set("Content-Type", cmp.Or(kind, "text/plain"))
	w.WriteHeader(code)
	_, _ = io.WriteString(w, "<p>says what is between</p>")
}

// refused has the stream refused in a page that is live, and in one that is opened: both say so, and are live again by themselves.
func (v *viewer) refused(gate *between, server *httptest.Server) {
	v.t.Helper()
	const says = `document.getElementById("live").textContent`
	for _, c := range []struct {
		code   int32
		opened bool
	}{{503, false}, {401, true}} {
		gate.code.Store(c.code)
		if c.opened {
			v.do(chromedp.Navigate(server.URL))
		} else {
			server.CloseClientConnections()
		}
		v.until("it says that it is refused", `/^not live: refused, the next try is within \d+s$/.test(`+says+`)`)
		gate.code.Store(0)
		v.until("it is live again", says+` === "live"`)
	}
}

// answers has freeings answered: to end a session is offered by 409 alone, and what is not the page's answer is no success.
func (v *viewer) answers(gate *between) {
	v.t.Helper()
	v.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("button.free").click(); document.getElementById("free-form").token.value = "any"`))
	const offered, bad = `!document.getElementById("free-end").hidden`, `document.getElementById("free-said").className === "bad"`
	for _, c := range []struct {
		code    int32
		kind    string
		says    string
		offered bool
	}{
		{504, "text/plain", "says what is between", false},
		{409, "text/plain", "says what is between", true},
		{503, "text/plain", "says what is between", false},
		{409, "text/html", "not this page's (409)", false},
		{200, "text/html; charset=utf-8", "not this page's (200)", false},
	} {
		gate.kind.Store(c.kind)
		gate.code.Store(c.code)
		v.do(chromedp.Evaluate[chromedp.Void](`document.getElementById("free-said").textContent = ""; document.querySelector("#free-form [type=submit]").click()`))
		v.has("free-said", c.says)
		v.until("it can be tried again", `!document.querySelector("#free-form [type=submit]").disabled`)
		require.True(v.t, value[bool](v, bad), c.code)
		require.Equal(v.t, c.offered, value[bool](v, offered), c.code)
		require.False(v.t, value[bool](v, `document.querySelector("#free-form [type=submit]").hidden`), c.code)
	}
}

// free frees what the button of this label is for, with the keyboard alone.
func (v *viewer) free(label string) {
	v.t.Helper()
	testkit.Eventually(v.t, "the keyboard reaches the button", func() bool {
		v.do(chromedp.KeyEvent(kb.Tab))
		return v.focused() == label
	})
	v.do(chromedp.KeyEvent(kb.Enter))
	v.until("the question is there", `document.getElementById("free").open`)
	require.Equal(v.t, "lock invoice/42", value[string](v, `document.getElementById("free-what").textContent`))
	v.do(chromedp.KeyEvent(kb.Escape))
	v.until("the question is gone", `!document.getElementById("free").open`)
	require.Equal(v.t, label, v.focused(), "the keyboard is where it was")
	v.do(chromedp.KeyEvent(kb.Enter), chromedp.KeyEvent(token), chromedp.KeyEvent(kb.Tab, chromedp.KeyModifiers(chromedp.ModifierShift)))
	require.Equal(v.t, "reason", v.focused())
	v.do(chromedp.KeyEvent("it hangs"), chromedp.KeyEvent(kb.Enter))
	v.has("free-said", "Freed: lock invoice/42.")
	v.do(chromedp.KeyEvent(kb.Enter))
	v.until("the question is gone", `!document.getElementById("free").open`)
}

// TestScreenshots draws a page that has everything, wide, narrow and dark, into PGBATON_SCREENSHOTS if that is set.
func TestScreenshots(t *testing.T) {
	t.Parallel()
	dir := os.Getenv("PGBATON_SCREENSHOTS")
	if dir == "" {
		dir = t.TempDir()
	}
	url := showcase(t)
	for _, shot := range []struct {
		name   string
		width  int64
		height int64
		scale  float64
		scheme string
		paper  string
	}{
		{"page-wide.png", 1180, 800, 1, "light", "rgb(251, 250, 248)"},
		{"page-dark.png", 1180, 800, 1, "dark", "rgb(20, 23, 26)"},
		{"page-narrow.png", 390, 844, 1.5, "light", "rgb(251, 250, 248)"},
	} {
		v := view(t)
		_, err := chromedp.Call(v.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: shot.scheme}},
		})
		require.NoError(t, err)
		v.do(chromedp.EmulateViewport(shot.width, shot.height, chromedp.EmulateScale(shot.scale)), chromedp.Navigate(url))
		v.until("it is live", `document.getElementById("live").textContent === "live"`)
		require.Equal(t, shot.paper, value[string](v, "getComputedStyle(document.body).backgroundColor"))
		require.LessOrEqual(t, value[int64](v, "document.documentElement.scrollWidth"), shot.width)
		const best = 100 // which makes it a PNG
		picture, err := chromedp.Run(v.ctx, chromedp.FullScreenshot(best))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, shot.name), picture, 0o600))
		v.requireNoProblem()
	}
}

// showcase has the package's own test serve a page that has everything, and returns where.
func showcase(t *testing.T) (url string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "showcase")
	build := exec.Command("go", "test", "-c", "-trimpath", "-vet=off", "-o", program, "./pgbatonui")
	build.Dir = "../.."
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	serve := exec.Command(program, "-test.run", "^TestShowcase$")
	serve.Env = append(os.Environ(), "PGBATON_SHOWCASE=1")
	input, err := serve.StdinPipe()
	require.NoError(t, err)
	output, err := serve.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, serve.Start())
	t.Cleanup(func() {
		_ = input.Close()
		require.NoError(t, serve.Wait())
	})
	url, err = bufio.NewReader(output).ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(url)
}
