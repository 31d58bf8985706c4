;;; latency.el --- When completion-at-point began and when its text was there  -*- lexical-binding: t -*-

;; Run by tests/editor_latency.py, with files to be completed at their ends.

;;; Code:

(require 'package)
(package-initialize)
(load (expand-file-name "../../editors/emacs/stopgap.el" (file-name-directory load-file-name)))
(setq eglot-sync-connect t eglot-connect-timeout 60 make-backup-files nil create-lockfiles nil
      stopgap-settings '(:showThreshold 0 :prepareNext :json-false))

(dolist (file command-line-args-left)
  (with-current-buffer (find-file-noselect file)
    (python-mode)
    (unless (eglot-managed-p)
      (apply #'eglot (eglot--guess-contact)))
    (goto-char (point-max))
    (insert (prog1 (string (char-before)) (delete-char -1))) ; the last key
    (let ((key (float-time)) (before (buffer-size)))
      (ignore-errors (completion-at-point))
      (let ((now (float-time)))
        (message "%s" (format "{\"key\": %f, \"shown\": %s}" key (if (> (buffer-size) before) (format "%f" now) "null")))))
    (set-buffer-modified-p nil)
    (read-string "")))

(setq command-line-args-left nil)

;;; latency.el ends here
