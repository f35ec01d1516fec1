package source

import (
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/webhookspine/spine/internal/secret"
)

// secretSet holds the secrets that a process has read for any of its sources. A request may carry the secret of another
// source than the one it came to. A sender may also go on with a former one. So the set forgets none before the process
// ends. It is safe for concurrent use.
type secretSet struct {
	mu    sync.Mutex
	index atomic.Pointer[secretIndex]
}

// maxForms bounds a secretSet. Each secret has a few forms.
const maxForms = 100_000

// add adds secrets in the forms in which a request may hold them, in lower case.
func (s *secretSet) add(forms []secret.Value) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.index.Load()
	if old == nil {
		old = &secretIndex{}
	}
	all := slices.Clone(old.forms)
	for _, form := range forms {
		if len(all) < maxForms && !slices.ContainsFunc(old.byStart[startOf(form.Reveal())], form.Equal) {
			all = append(all, form)
		}
	}
	if len(all) > len(old.forms) {
		s.index.Store(newSecretIndex(all))
	}
}

// secretIndex finds secrets in one pass over a text, however many there are. It does not change.
type secretIndex struct {
	forms   []secret.Value
	starts  [1 << 10]uint64           // a bit for each start that there is
	byStart map[uint16][]secret.Value // by a hash, which tells nothing
}

func newSecretIndex(forms []secret.Value) *secretIndex {
	x := &secretIndex{forms: forms, byStart: map[uint16][]secret.Value{}}
	for _, form := range forms {
		start := startOf(form.Reveal())
		x.starts[start>>6] |= 1 << (start & 63)
		x.byStart[start] = append(x.byStart[start], form)
	}
	return x
}

// startSize is how many bytes of a secret its start has, in each of its forms. Many secrets begin alike, as in whsec_.
const startSize = minSecret

// startOf is a hash of the first bytes of a text.
func startOf(text string) uint16 {
	var start [startSize]byte
	copy(start[:], text)
	return uint16(binary.LittleEndian.Uint64(start[:]) * 0x9e3779b97f4a7c15 >> 48)
}

// in reports whether a text in lower case is one of the secrets, or holds one of so many bytes or more.
func (x *secretIndex) in(text string, least int) bool {
	for i := 0; i+startSize <= len(text); i++ {
		start := startOf(text[i : i+startSize])
		if x.starts[start>>6]&(1<<(start&63)) == 0 {
			continue
		}
		for _, form := range x.byStart[start] {
			known := form.Reveal()
			if strings.HasPrefix(text[i:], known) && (len(known) >= least || known == text) {
				return true
			}
		}
	}
	return false
}
