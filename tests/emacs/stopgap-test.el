;;; stopgap-test.el --- The real Emacs against the real server  -*- lexical-binding: t -*-

;; Run by test_emacs.py in batch mode; the daemon behind the server knows the lines of tests/nvim/engine.py.

;;; Code:

(require 'ert)
(require 'package)
(package-initialize)
(load (expand-file-name "../../editors/emacs/stopgap.el" (file-name-directory load-file-name)))

(setq eglot-confirm-server-initiated-edits nil
      eglot-sync-connect t
      eglot-connect-timeout 60
      make-backup-files nil
      create-lockfiles nil)

(defvar stopgap-test-folder (make-temp-file "stopgap" t)
  "One project, so that one server serves all tests.")

(defvar stopgap-test-files 0)

(defmacro stopgap-test-in (text &rest body)
  "Visit a new Python file with TEXT, `|' being point, connect, and run BODY."
  (declare (indent 1))
  `(let ((name (format "t%d.py" (setq stopgap-test-files (1+ stopgap-test-files)))))
     (with-current-buffer (find-file-noselect (expand-file-name name stopgap-test-folder))
       (unwind-protect
           (progn
             (insert ,text)
             (goto-char (point-min))
             (search-forward "|")
             (delete-char -1)
             (python-mode)
             (unless (eglot-managed-p)
               (apply #'eglot (eglot--guess-contact)))
             (setq buffer-undo-list nil)
             ,@body)
         (set-buffer-modified-p nil)
         (kill-buffer)))))

(ert-deftest stopgap-test-completion-inserts-a-fill ()
  "An entry of the menu becomes the whole fill, as one undo step."
  (stopgap-test-in "# 😀 é\ndef ad|\n"
    (undo-boundary)
    (completion-at-point)
    (should (equal (buffer-string) "# 😀 é\ndef add(a, b):\n    return a + b\n"))
    (undo-boundary)
    (setq last-command 'ignore)
    (undo)
    (should (equal (buffer-string) "# 😀 é\ndef ad\n"))))

(ert-deftest stopgap-test-completion-on-a-line-with-wide-characters ()
  "Positions are right behind characters that are two units of UTF-16."
  (stopgap-test-in "names = [\"ä\", \"😀\"]; co|\n"
    (completion-at-point)
    (should (equal (buffer-string) "names = [\"ä\", \"😀\"]; count = len(names)\n"))))

(defun stopgap-test-act (title)
  "Take the code action TITLE at point and wait for its edit."
  (let* ((before (buffer-string))
         (limit (+ (float-time) 60))
         (actions (eglot-code-actions (point)))
         (action (seq-find (lambda (a) (string-prefix-p title (plist-get a :title))) actions)))
    (should action)
    (let ((command (plist-get action :command)))
      (eglot-execute-command (eglot-current-server) (intern (plist-get command :command))
                             (plist-get command :arguments)))
    (while (and (equal before (buffer-string)) (< (float-time) limit))
      (accept-process-output nil 0.05))))

(ert-deftest stopgap-test-a-code-action-rewrites ()
  "A rewrite changes its place only."
  (stopgap-test-in "def unique(values):\n    return |values\n\n\nprint(1)\n"
    (stopgap-test-act "Rewrite this function")
    (should (equal (buffer-string)
                   "def unique(values):\n    return sorted(set(values))  # 😀 ok\n\n\nprint(1)\n"))))

(ert-deftest stopgap-test-an-instruction-is-asked-for ()
  "The server asks in the minibuffer what shall become of the code."
  (stopgap-test-in "def unique(values):\n    return |values\n"
    (let (asked)
      (cl-letf (((symbol-function 'read-string) (lambda (prompt &rest _) (setq asked prompt) "sort them")))
        (stopgap-test-act "Rewrite with instruction"))
      (should (equal asked "What shall become of this code? "))
      (should (string-match-p "return sorted(set(values))" (buffer-string))))))

(ert-deftest stopgap-test-why-and-status ()
  "The commands answer."
  (stopgap-test-in "zzz|\n"
    (stopgap-status)
    (eglot-completion-at-point)
    (let ((lines (plist-get (stopgap--request :stopgap/why '(:last 10)) :lines)))
      (should (vectorp lines)))))

;;; stopgap-test.el ends here
