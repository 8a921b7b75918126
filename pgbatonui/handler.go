package pgbatonui

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton"
)

// Config is how a page behaves. Nil means the defaults.
type Config struct {
	// FreeToken is a secret of 16 bytes or more that frees holders. Defaults to "": the page is read-only.
	FreeToken string

	// Hosts are the names, without ports, that a request's Host may have. Give "localhost", "127.0.0.1" and "::1" to a page that listens on
	// loopback without a login. Defaults to none: every name is answered.
	Hosts []string

	// Names are of runs, as [pgbaton.Client.Once] has them: the database knows a run by a number, and the page by its name if it is here, or
	// was seen running. At most 1,000.
	Names []string

	// Who returns on whose behalf a request frees something, for the record. Defaults to nobody's.
	Who func(r *http.Request) string

	// Examine returns further findings about the database, as those of `pgbaton doctor`. It is called every five minutes while somebody watches, between two readings, and has
	// ten seconds. Defaults to none.
	Examine func(ctx context.Context) []Finding

	// Logger gets a line for each freeing and each refusal of one. Defaults to nothing.
	Logger *slog.Logger
}

// Finding is something that was found out about the database or the client.
type Finding struct {
	Topic string
	Level string // "ok", "warning" or "error"
	Says  string
	Do    string // what to do; "" if nothing
}

const (
	minToken  = 16
	maxNames  = 1000
	every     = time.Second
	linger    = time.Minute
	firstWait = 3 * time.Second // of a page for the first reading
)

// Handler serves the page. It is made by [New], is safe for concurrent use, and ends with [Handler.Close].
type Handler struct {
	cfg      Config
	freeHeld func(context.Context, pgbaton.LockInfo, *pgbaton.FreeOpts) ([]pgbaton.LockInfo, error)
	readings *readings
	mux      *http.ServeMux
	secret   [sha256.Size]byte
	origins  *http.CrossOriginProtection

	mu      sync.Mutex
	viewers int // those that get a page or have a stream
	closed  bool

	ctx     context.Context //nolint:containedctx // ended by Close, which viewers do not wait longer than
	end     context.CancelFunc
	answers sync.WaitGroup // to viewers
}

// New makes the page of a database. The client lists, and frees if that is allowed; db runs the page's own queries, one at a time: a
// *pgxpool.Pool of the same database, or what [pgbaton.SQLDB] makes of a *sql.DB. Both stay the caller's.
func New(client *pgbaton.Client, db pgbaton.Querier, cfg *Config) (*Handler, error) {
	var c Config
	if cfg != nil {
		c = *cfg
	}
	switch {
	case client == nil || db == nil:
		return nil, errors.New("pgbatonui: the client or the database is nil")
	case c.FreeToken != "" && len(c.FreeToken) < minToken:
		return nil, fmt.Errorf("pgbatonui: Config.FreeToken has %d bytes, the least is %d", len(c.FreeToken), minToken)
	case len(c.Names) > maxNames:
		return nil, fmt.Errorf("pgbatonui: Config.Names has %d, the most is %d", len(c.Names), maxNames)
	}
	source := newSource(client, db, c)
	return newHandler(client, c, source.read), nil
}

// newHandler makes a page over readings from anywhere.
func newHandler(client *pgbaton.Client, cfg Config, read func(context.Context) *reading) *Handler {
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	h := &Handler{
		cfg: cfg, freeHeld: client.Free, mux: http.NewServeMux(), secret: sha256.Sum256([]byte(cfg.FreeToken)),
		origins: http.NewCrossOriginProtection(),
	}
	h.ctx, h.end = context.WithCancel(context.Background())
	renderer := newRenderer(cfg.FreeToken != "")
	h.readings = newReadings(every, linger, func(ctx context.Context, last *snapshot) *snapshot {
		return renderer.render(read(ctx), last)
	})
	h.mux.HandleFunc("GET /{$}", h.page)
	h.mux.HandleFunc("GET /events", h.events)
	h.mux.HandleFunc("POST /free", h.free)
	for name, asset := range assets {
		h.mux.HandleFunc("GET /"+name, asset.serve)
	}
	return h
}

// ServeHTTP answers a request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	secure(w.Header())
	limit(w)
	if !h.isFor(r.Host) {
		http.Error(w, "This page does not answer to that name.", http.StatusMisdirectedRequest)
		return
	}
	h.mux.ServeHTTP(w, r)
}

// Close ends all streams and the readings, and returns when they have ended. It closes neither the client nor the database.
func (h *Handler) Close() error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.end()
	h.answers.Wait()
	h.readings.close()
	return nil
}

// page answers with the whole page. Nothing is read for a viewer to whom it is only written.
func (h *Handler) page(w http.ResponseWriter, r *http.Request) {
	if !h.enter() {
		refuse(w)
		return
	}
	defer h.exit()
	shown := h.first(r.Context())
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	limit(w)
	if err := writePage(w, shown, h.cfg.FreeToken != ""); err != nil {
		h.cfg.Logger.Warn("pgbatonui: the page could not be written", slog.Any("error", err))
	}
}

// first returns a snapshot for a new viewer, or nil when there is none for a while.
func (h *Handler) first(ctx context.Context) *snapshot {
	ctx, cancel := context.WithTimeout(ctx, firstWait)
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	defer h.readings.watch()()
	return h.readings.first(ctx)
}

// limit bounds how long a viewer may take to get what is written to it next.
func limit(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)) // where there are none, the server has its own
}
