// Package dashboard is the live page. On it a person sees how things stand, finds what happened to an event, and tries
// Spine out.
//
// It serves files that are part of the binary. It promises that the page loads nothing from elsewhere and runs no
// script but its own. A browser never shows an older page than the binary's. The page weighs less than 70 kB
// compressed, as it is sent.
//
// It knows nothing of the database: the page asks the API, like any other client. Package api decides who may see it.
package dashboard

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"

	"github.com/gorilla/mux"

	"github.com/webhookspine/spine/internal/respond"
)

//go:embed page
var embedded embed.FS

// policy allows the page its own files and requests to its own host, and nothing else: no script or style in the
// markup, no frame around it, no form that the browser itself sends.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

var contentTypes = map[string]string{
	".css":  "text/css; charset=utf-8",
	".html": "text/html; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

// file is one file of the page, plain and compressed. Compressing all of them would take a start 25 ms, so each is
// compressed when it is first asked for.
type file struct {
	contentType string
	plain       representation
	zipped      func() representation
}

type representation struct {
	body []byte
	etag string // strong (RFC 9110, section 8.8)
}

// Handler answers GET /dashboard and /dashboard/….
type Handler struct {
	files map[string]file // by path below /dashboard/
}

// New reads the embedded files.
func New() (*Handler, error) {
	h := &Handler{files: map[string]file{}}
	err := fs.WalkDir(embedded, "page", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		body, err := embedded.ReadFile(name)
		if err != nil {
			return err
		}
		f := file{contentType: contentTypes[path.Ext(name)], plain: newRepresentation(body)}
		if f.contentType == "" {
			return fmt.Errorf("%s has no content type", name)
		}
		f.zipped = sync.OnceValue(func() representation { return newRepresentation(compress(body)) })
		h.files[strings.TrimPrefix(name, "page/")] = f
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the page: %w", err)
	}
	return h, nil
}

func newRepresentation(body []byte) representation {
	hash := sha256.Sum256(body)
	return representation{body: body, etag: `"` + base64.RawURLEncoding.EncodeToString(hash[:12]) + `"`}
}

func compress(body []byte) []byte {
	var zipped bytes.Buffer
	w, err := gzip.NewWriterLevel(&zipped, gzip.BestCompression)
	if err == nil {
		_, err = w.Write(body)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // the level exists, and a buffer takes everything
	}
	return zipped.Bytes()
}

// Register adds the handler's routes: GET /dashboard and the files that it loads.
func (h *Handler) Register(r *mux.Router) {
	r.Path("/dashboard").
		Methods(http.MethodGet, http.MethodHead).
		HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			serve(w, r, h.files["index.html"])
		})
	for name, f := range h.files {
		if name == "index.html" {
			continue // its links are relative to /dashboard
		}
		r.Path("/dashboard/"+name).
			Methods(http.MethodGet, http.MethodHead).
			HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				serve(w, r, f)
			})
	}
	// The page's relative links are right only without a slash at the end.
	r.Path("/dashboard/").
		Methods(http.MethodGet, http.MethodHead).
		HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			respond.Secure(w.Header())
			w.Header().Set("Location", "../dashboard")
			w.WriteHeader(http.StatusPermanentRedirect)
		})
}

// serve sends a file, or 304 to a client that has it. Browsers ask each time, so that the page and its scripts are
// always of one binary.
func serve(w http.ResponseWriter, r *http.Request, f file) {
	header := w.Header()
	respond.Secure(header)
	shown, zipped := f.plain, acceptsGzip(r.Header.Values("Accept-Encoding"))
	if zipped {
		shown = f.zipped()
	}
	header.Set("Cache-Control", "no-cache")
	header.Set("Content-Security-Policy", policy)
	header.Set("Vary", "Accept-Encoding")
	header.Set("ETag", shown.etag)
	if known(r.Header.Values("If-None-Match"), shown.etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	if zipped {
		header.Set("Content-Encoding", "gzip")
	}
	header.Set("Content-Type", f.contentType)
	header.Set("Content-Length", strconv.Itoa(len(shown.body)))
	_, _ = w.Write(shown.body) // the client may be gone
}

// acceptsGzip reports whether a request names gzip and does not rule it out.
func acceptsGzip(values []string) bool {
	for coding := range strings.SplitSeq(strings.Join(values, ","), ",") {
		name, weight, _ := strings.Cut(strings.TrimSpace(coding), ";")
		if strings.EqualFold(strings.TrimSpace(name), "gzip") {
			quality, found := strings.CutPrefix(strings.ReplaceAll(weight, " ", ""), "q=")
			return !found || strings.Trim(quality, "0.") != ""
		}
	}
	return false
}

// known reports whether a client has the representation with this etag.
func known(values []string, etag string) bool {
	for candidate := range strings.SplitSeq(strings.Join(values, ","), ",") {
		candidate = strings.TrimPrefix(strings.TrimSpace(candidate), "W/")
		if candidate == etag || candidate == "*" {
			return true
		}
	}
	return false
}
