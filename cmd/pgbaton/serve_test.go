//go:build unix

package main

import (
	"bufio"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// get asks for a page under a name, and returns the status and what is there.
func get(t *testing.T, address, host string) (status int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	require.NoError(t, err)
	if host != "" {
		r.Host = host
	}
	answer, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return answer.StatusCode, string(text)
}

// TestServe: the page is there for loopback's names only, frees for a viewer with the token, and ends with TERM while it is watched.
func TestServe(t *testing.T) {
	const token = "a token of the tests"
	t.Setenv("PGBATON_FREE_TOKEN", token)
	dsn := testkit.Migrated(t)
	lock, err := client(t, dsn).Acquire(t.Context(), pgbaton.Name("invoice/42"))
	require.NoError(t, err)
	b := call(t, dsn, "serve", "--listen", "127.0.0.1:0", "--allow-free")
	address := b.line(t)
	require.Regexp(t, `^http://127\.0\.0\.1:\d+/$`, address)
	status, _ := get(t, address, "evil.example")
	require.Equal(t, http.StatusMisdirectedRequest, status)
	page := ""
	testkit.Eventually(t, "the lock can be freed", func() bool {
		status, page = get(t, address, "localhost:9")
		require.Equal(t, http.StatusOK, status)
		return strings.Contains(page, `data-what="lock invoice/42"`)
	})
	_, after, _ := strings.Cut(page, `data-held="`)
	held, _, _ := strings.Cut(after, `"`)
	testkit.Eventually(t, "it is freed", func() bool {
		answer, err := http.PostForm(address+"free", url.Values{"token": {token}, "held": {held}})
		require.NoError(t, err)
		defer answer.Body.Close()
		return answer.StatusCode == http.StatusOK || answer.StatusCode == http.StatusNotFound
	})
	<-lock.Done()

	stream, err := http.Get(address + "events")
	require.NoError(t, err)
	defer stream.Body.Close()
	events := bufio.NewReader(stream.Body)
	_, err = events.ReadString('\n')
	require.NoError(t, err)
	require.NoError(t, b.Process.Signal(syscall.SIGTERM))
	b.requireStatus(t, 0)
	_, err = io.Copy(io.Discard, events)
	require.NoError(t, err, "the stream was ended, not cut")
	require.NotContains(t, b.stderr.String(), token)
}

// TestServe_Hosts: on all addresses it answers to this machine's own name and addresses and to those that were given, and to no other name.
func TestServe_Hosts(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	b := call(t, dsn, "serve", "--listen", "0.0.0.0:0", "--host", "locks.example", "--host", "2001:db8::1")
	address := b.line(t)
	require.Regexp(t, `^http://localhost:\d+/$`, address)
	name, err := os.Hostname()
	require.NoError(t, err)
	for _, host := range []string{"", "127.0.0.1", "[::1]:5480", name, strings.ToUpper(name) + ":80", "locks.example:5480", "[2001:db8::1]:5480"} {
		status, _ := get(t, address, host)
		require.Equal(t, http.StatusOK, status, host)
	}
	for _, host := range []string{"evil.example", "evil.example:5480", name + ".evil.example", "0.0.0.0", "[::]"} {
		for _, path := range []string{"", "events", "free"} {
			status, body := get(t, address+path, host)
			require.Equal(t, http.StatusMisdirectedRequest, status, host)
			require.NotContains(t, body, "pgbaton", host)
		}
	}
	require.NoError(t, b.Process.Signal(syscall.SIGTERM))
	b.requireStatus(t, 0)
	require.Contains(t, b.stderr.String(), "It answers to localhost, 127.0.0.1, ::1, ")

	for _, host := range []string{"", "locks.example:5480", "http://locks.example/"} {
		b = call(t, dsn, "serve", "--listen", "127.0.0.1:0", "--host", host)
		b.requireStatus(t, 2)
		require.Contains(t, b.stderr.String(), "without a port", host)
	}
}

// TestServe_ReadOnly: without --allow-free nobody frees; with it there is a token at each start.
func TestServe_ReadOnly(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	b := call(t, dsn, "serve", "--listen", "127.0.0.1:0")
	address := b.line(t)
	_, page := get(t, address, "")
	require.NotContains(t, page, "<dialog")
	answer, err := http.PostForm(address+"free", url.Values{"token": {""}, "held": {""}})
	require.NoError(t, err)
	defer answer.Body.Close()
	require.Equal(t, http.StatusForbidden, answer.StatusCode)
	require.NoError(t, b.Process.Signal(syscall.SIGINT))
	b.requireStatus(t, 0)

	b = call(t, dsn, "serve", "--listen", "127.0.0.1:0", "--allow-free")
	b.line(t)
	require.NoError(t, b.Process.Signal(syscall.SIGTERM))
	b.requireStatus(t, 0)
	require.Regexp(t, `(?m)^The token that frees: [A-Z2-7]{26}$`, b.stderr.String())
}
