package secret

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// maxFile is the size in bytes of the largest file that holds a secret.
const maxFile = 64 << 10

// Reference names a secret: a variable of the process (env:NAME), or a file (file:NAME, file:/absolute/path).
type Reference struct {
	Kind string // env or file
	Name string // of the variable or the file, or the file's clean absolute path
}

// Form says what a reference looks like.
const Form = "env:NAME, file:NAME or file:/absolute/path"

// ParseReference takes a reference apart. It is not ok where a text is none. That text may be a secret, given by
// mistake, so nobody may repeat it.
func ParseReference(text string) (r Reference, ok bool) {
	kind, name, _ := strings.Cut(text, ":")
	switch kind {
	case "env":
		ok = isVariable(name)
	case "file":
		ok = isFileName(name) ||
			filepath.IsAbs(name) && filepath.Clean(name) == name && len(name) > 1 && !strings.ContainsRune(name, 0)
	}
	if !ok {
		return Reference{}, false
	}
	return Reference{kind, name}, true
}

// String is the text that ParseReference reads.
func (r Reference) String() string { return r.Kind + ":" + r.Name }

// isVariable reports whether a text is the name of a variable in the sense of POSIX, in upper or lower case.
func isVariable(name string) bool {
	for i := range len(name) {
		if c := name[i]; c != '_' && !isLetter(c) && (i == 0 || !isDigit(c)) {
			return false
		}
	}
	return name != ""
}

// isFileName reports whether a text is the name of a file without its folder.
func isFileName(name string) bool {
	for i := range len(name) {
		if c := name[i]; !isLetter(c) && !isDigit(c) && c != '_' && c != '-' && c != '.' {
			return false
		}
	}
	return name != "" && name != "." && name != ".." && len(name) <= 255
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
func isDigit(c byte) bool  { return c >= '0' && c <= '9' }

// Resolver reads the secrets of a process that may be named. It is safe for concurrent use.
type Resolver struct {
	patterns []string
	dir      string
	own      []string
	lookup   func(name string) (value string, found bool)
}

// Rules say which secrets may be named.
type Rules struct {
	Patterns []string // of variables; * stands for any text, an empty one too
	Dir      string   // of files
	// Own are patterns of variables that may never be named, in upper case: those of Spine itself.
	Own []string
	// Lookup finds a variable, as os.LookupEnv does.
	Lookup func(name string) (value string, found bool)
}

// CheckPattern says what is wrong with a pattern of variables.
func CheckPattern(pattern string) error {
	if pattern == "" || !isVariable(strings.ReplaceAll(pattern, "*", "_")) {
		return errors.New("must be names of variables, in which * stands for any text, separated by commas")
	}
	return nil
}

// CheckDir says what is wrong with a folder. A folder of devices or processes holds no secrets, and the root holds
// everything.
func CheckDir(dir string) error {
	absolute, err := filepath.Abs(dir)
	if err != nil || dir == "" {
		return errors.New("must be a folder")
	}
	if isForbidden(absolute) {
		return errors.New("must be a folder of secrets, and neither / nor in /proc, /sys or /dev")
	}
	return nil
}

// isForbidden reports whether an absolute path is the root or leads into the kernel's own file systems.
func isForbidden(absolute string) bool {
	if absolute == "/" {
		return true
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(absolute, "/"), "/")
	return first == "proc" || first == "sys" || first == "dev" && !strings.HasPrefix(absolute, "/dev/shm/")
}

// NewResolver returns a Resolver by checked rules. A relative folder is taken from where the process works now.
func NewResolver(rules Rules) *Resolver {
	dir, err := filepath.Abs(rules.Dir)
	if err != nil {
		dir = rules.Dir // it cannot be read either
	}
	return &Resolver{patterns: rules.Patterns, dir: dir, own: rules.Own, lookup: rules.Lookup}
}

// Check says why a reference may not be named. It reads nothing. The error repeats a reference, but no text that is
// none.
func (r *Resolver) Check(text string) error {
	ref, ok := ParseReference(text)
	if !ok {
		return errors.New("a secret is named by " + Form)
	}
	fits := func(pattern string) bool {
		matched, err := path.Match(pattern, ref.Name)
		return err == nil && matched
	}
	upper := strings.ToUpper(ref.Name)
	switch {
	case ref.Kind == "env" && slices.ContainsFunc(r.own, func(pattern string) bool {
		matched, err := path.Match(pattern, upper)
		return err == nil && matched
	}):
		return fmt.Errorf("%s may not be named: it is a setting of Spine itself", ref)
	case ref.Kind == "env" && !slices.ContainsFunc(r.patterns, fits):
		return fmt.Errorf("%s may not be named: SECRET_ENV allows only %s", ref, strings.Join(r.patterns, ", "))
	case ref.Kind == "file" && filepath.IsAbs(ref.Name) && filepath.Dir(ref.Name) != r.dir:
		return fmt.Errorf("%s may not be named: SECRET_DIR allows only files directly in %s", ref, r.dir)
	}
	return nil
}

// Resolve reads the secret that a reference names. Its error names the reference and what is wrong. An empty secret is
// an error. A line end at the end of a file does not belong to the secret.
func (r *Resolver) Resolve(text string) (Value, error) {
	if err := r.Check(text); err != nil {
		return Value{}, err
	}
	ref, _ := ParseReference(text)
	var value string
	if ref.Kind == "env" {
		var found bool
		if value, found = r.lookup(ref.Name); !found {
			return Value{}, fmt.Errorf(
				"%s is not set in this process's environment: set it where the process is started",
				ref,
			)
		}
	} else {
		content, err := r.readFile(filepath.Base(ref.Name))
		if err != nil {
			return Value{}, fmt.Errorf("%s cannot be read: %w", ref, err)
		}
		value = strings.TrimSuffix(strings.TrimSuffix(content, "\n"), "\r")
	}
	if value == "" {
		return Value{}, fmt.Errorf("%s is empty", ref)
	}
	return New(value), nil
}

// File is the path of the file that a reference names. It is not ok of a variable and of a file that may not be named.
func (r *Resolver) File(text string) (name string, ok bool) {
	ref, isReference := ParseReference(text)
	if !isReference || ref.Kind != "file" || r.Check(text) != nil {
		return "", false
	}
	return filepath.Join(r.dir, filepath.Base(ref.Name)), true
}

// errOutside says that a link would lead out of the folder.
var errOutside = errors.New("it is a link that leads out of SECRET_DIR")

// readFile reads a small regular file of the folder. Links are followed as far as they end in it, since Kubernetes
// makes them. The file is opened beneath the folder, so that nothing that changes meanwhile leads elsewhere, and
// without waiting, since opening a pipe would wait for a writer.
func (r *Resolver) readFile(name string) (string, error) {
	dir, err := filepath.EvalSymlinks(r.dir)
	if err != nil {
		return "", r.folderError(err)
	}
	if isForbidden(dir) {
		return "", errOutside
	}
	target, err := filepath.EvalSymlinks(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrPermission) { // to look a name up, only folders must let a process pass
		return "", r.folderError(err)
	} else if err != nil {
		return "", r.fileError(name, err)
	}
	inside, err := filepath.Rel(dir, target)
	if err != nil || !filepath.IsLocal(inside) {
		return "", errOutside
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", r.folderError(err)
	}
	defer func() { _ = root.Close() }() // nothing was written
	if info, err := root.Stat(inside); err != nil {
		return "", r.fileError(name, err)
	} else if !info.Mode().IsRegular() {
		return "", errors.New("it is no regular file")
	}
	f, err := root.OpenFile(inside, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", r.fileError(name, err)
	}
	defer func() { _ = f.Close() }() // it was only read
	if info, err := f.Stat(); err != nil {
		return "", r.fileError(name, err)
	} else if !info.Mode().IsRegular() {
		return "", errors.New("it is no regular file")
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", r.fileError(name, err)
	}
	if len(content) > maxFile {
		return "", errors.New("it is larger than 64 KiB")
	}
	return string(content), nil
}

// fileError says why a file of the folder cannot be read, and what to do where its mode is why.
func (r *Resolver) fileError(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the file %s is not there (SECRET_DIR %s)", name, r.dir)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("user %d, who runs this process, may not read the file %s (SECRET_DIR %s): "+
			"chmod a+r lets every user, chown gives it to this one", os.Geteuid(), name, r.dir)
	}
	return bareError(err)
}

// folderError says the same of the folder itself.
func (r *Resolver) folderError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the folder of secrets is not there (SECRET_DIR %s)", r.dir)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("user %d, who runs this process, may not enter the folder of secrets (SECRET_DIR %s): "+
			"chmod a+rx lets every user, chown gives it to this one", os.Geteuid(), r.dir)
	}
	return bareError(err)
}

// bareError is an error of a file without its path, which the reference names already.
func bareError(err error) error {
	if pathError, ok := errors.AsType[*os.PathError](err); ok {
		return pathError.Err
	}
	return err
}
